"""The OpenAPI 3.1 description of the server, for people, client generators and schemathesis."""

from __future__ import annotations

from typing import Any

from serve.reading import IMAGE_TYPES, JSON_TYPE, Limits

Schema = dict[str, Any]

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["status", "problem", "accepted"],
            "properties": {
                "status": {"type": "integer"},
                "problem": {"type": "string"},
                "accepted": {"type": "string"},
            },
        }
    },
}
_PHOTO: Schema = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {
        "image": {"type": "string", "contentEncoding": "base64", "minLength": 1},
        "url": {"type": "string", "format": "uri", "minLength": 1},
    },
}
_REFUSALS = {
    "400": "The body cannot be read.",
    "403": "Addresses are not fetched here, or this one is not public.",
    "406": "No answer can be written in what Accept names.",
    "413": "Too many bytes, pixels or frames.",
    "415": "The Content-Type is not read.",
    "503": "The model is not ready, or too many requests are waiting.",
    "504": "No answer within the deadline.",
}


def describe(limits: Limits) -> Schema:
    """The description of a server with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "graft", "version": "1", "description": "Answers photos with classes."},
        "paths": {
            "/ping": {"get": {"summary": "Healthy once the model is checked.", "responses": _responses("200", "503")}},
            "/invocations": {"post": _invocations(limits)},
            "/metrics": {"get": {"summary": "Counts for Prometheus.", "responses": {"200": _text("text/plain")}}},
            "/openapi.json": {"get": {"summary": "This description.", "responses": _responses("200")}},
            "/": {"get": {"summary": "The page for people.", "responses": {"200": _text("text/html")}}},
        },
    }


def _invocations(limits: Limits) -> Schema:
    photos = {"type": "array", "minItems": 1, "maxItems": limits.photos, "items": _PHOTO}
    image: Schema = {"schema": {"type": "string", "format": "binary"}}
    content = dict.fromkeys(IMAGE_TYPES, image) | {JSON_TYPE: {"schema": {"anyOf": [_PHOTO, photos]}}}
    top_k = {"type": "integer", "minimum": 1, "maximum": 999_999}
    parameters = {"top_k": top_k, "photo": {"type": "boolean"}}
    return {
        "summary": f"Classes of a photo, or of up to {limits.photos}.",
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in parameters.items()
        ],
        "requestBody": {"required": True, "content": content},
        "responses": _responses("200", *_REFUSALS) | {"200": _answer()},
    }


def _answer() -> Schema:
    answer: Schema = {"description": "The answer.", "content": {JSON_TYPE: {"schema": {"type": ["object", "array"]}}}}
    answer["content"]["text/csv"] = {"schema": {"type": "string"}}
    return answer


def _responses(*statuses: str) -> Schema:
    said: Schema = {}
    for status in statuses:
        schema = {"type": "object"} if status == "200" else _ERROR
        said[status] = {"description": _REFUSALS.get(status, "OK"), "content": {JSON_TYPE: {"schema": schema}}}
    return said


def _text(media_type: str) -> Schema:
    return {"description": "OK", "content": {media_type: {"schema": {"type": "string"}}}}
