"""The AsyncAPI document of live sessions refers to what it contains, and describes every message."""

from __future__ import annotations

import json
import re

from flask.testing import FlaskClient

from audiocraft_api.web.live_answers import ANSWERS
from audiocraft_api.web.schemas.live import MESSAGES


def test_the_document_describes_every_message_and_its_references_resolve(client: FlaskClient) -> None:
    document = client.get("/asyncapi.json").get_json()
    assert document["asyncapi"] == "3.0.0"
    names = {schema.__name__ for schema in (*MESSAGES.values(), *ANSWERS)} | {"Audio"}
    assert set(document["components"]["messages"]) == names
    assert set(document["channels"]["live"]["messages"]) == names
    references = set(re.findall(r'"#/([^"]+)"', json.dumps(document)))
    assert len(references) > 40
    for reference in references:
        found = document
        for part in reference.split("/"):
            found = found[part]
        assert found
