"""Lists of the API: one form, and in the OpenAPI document a name for each route's own."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel

from luthier.platform.http.routes import ListObject, ListPage, PartialList


class Item(BaseModel):
    id: str


class ItemPage(ListPage[Item]):
    """A page of items."""


class OldPage(ListPage[Item]):
    """A page whose schema requires its kind."""

    object: Literal["list"]


def test_a_page_has_the_ids_of_its_ends() -> None:
    page = ItemPage.of([Item(id="a"), Item(id="b"), Item(id="c")], has_more=True)
    assert page.model_dump() == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
        "has_more": True,
        "first_id": "a",
        "last_id": "c",
    }


@pytest.mark.parametrize("kind", [ItemPage, OldPage])
def test_an_empty_page_has_no_ends(kind: type[ListPage[Item]]) -> None:
    page = kind.of([], has_more=False)
    assert (page.object, page.data, page.first_id, page.last_id) == ("list", [], None, None)


def test_a_kind_of_list_keeps_its_name_in_the_document() -> None:
    schema = ItemPage.model_json_schema(mode="serialization")
    assert (schema["title"], schema["description"]) == ("ItemPage", "A page of items.")
    assert list(schema["properties"]) == ["object", "data", "has_more", "first_id", "last_id"]
    assert schema["properties"]["data"]["items"] == {"$ref": "#/$defs/Item"}
    assert schema["required"] == ["data", "has_more", "first_id", "last_id"]
    assert "object" in OldPage.model_json_schema(mode="serialization")["required"]


def test_each_form_adds_to_the_one_before() -> None:
    assert list(ListObject[Item].model_fields) == ["object", "data"]
    assert list(PartialList[Item].model_fields) == ["object", "data", "has_more"]
