"""The result cache: requests with the same fields and seed get the stored audio."""
