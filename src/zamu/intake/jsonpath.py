# SPDX-License-Identifier: Apache-2.0
"""Options that say where something stands in a stranger's JSON."""

from typing import Annotated

import jsonpath_rfc9535
from pydantic import AfterValidator


def _query(text: str) -> str:
    try:
        jsonpath_rfc9535.compile(text)
    except jsonpath_rfc9535.JSONPathError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(f"{text!r} is not a JSONPath query (RFC 9535): {reason}") from None
    return text


#: A JSONPath query, as text.
type JsonPath = Annotated[str, AfterValidator(_query)]
