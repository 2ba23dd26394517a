"""HTTP: the only package that imports Flask. Parses and validates requests, calls one service, renders the response."""
