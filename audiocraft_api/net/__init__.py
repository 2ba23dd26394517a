"""Outbound HTTP to URLs that operators and clients choose: bounded in time, and safe against SSRF."""
