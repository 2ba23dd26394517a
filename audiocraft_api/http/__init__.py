"""What the routes share: schemas, OpenAPI, errors, request context. Flask lives here; torch never does."""
