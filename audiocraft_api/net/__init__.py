"""Outbound HTTP to addresses that operators and clients choose: bounded in time, and safe against SSRF."""
