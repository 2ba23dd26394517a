"""Routes that clients of other services speak. Each family translates requests and responses, and generates nothing.

These routes are not part of OpenAPI: their contracts belong to other services, with open objects and other errors, and
the clients generated from the document must not contain them. docs/compatibility.md describes them.
"""
