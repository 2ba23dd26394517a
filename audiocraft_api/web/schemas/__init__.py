"""The schemas of all requests and responses of the HTTP API."""
