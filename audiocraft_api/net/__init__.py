"""Outbound HTTP to addresses that operators and clients name: bounded, and safe against SSRF."""
