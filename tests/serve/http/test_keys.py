"""API keys: where they are read, how they come, how often they may ask."""

import time

import pytest

from mst.errors import ConfigError
from serve.http.keys import Keys, is_loopback, read_keys


def test_keys_are_read_from_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# the annotators\nannotators-0123456789\n\n")
    found = read_keys(str(file), {"MST_API_KEYS": "robots-0123456789ab, others-0123456789ab"})
    assert set(found) == {"annotators-0123456789", "robots-0123456789ab", "others-0123456789ab"}
    assert read_keys("", {}) == ()
    with pytest.raises(ConfigError, match="fewer than 16"):
        read_keys("", {"MST_API_KEYS": "short"})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(str(tmp_path / "none"), {})


def test_every_tools_way_to_send_a_key_is_known():
    keys = Keys(("first-0123456789ab", "second-0123456789a"), 10)
    for headers in (
        {b"authorization": b"Bearer second-0123456789a"},
        {b"authorization": b"Token second-0123456789a"},
        {b"authorization": b"Basic dXNlcjpzZWNvbmQtMDEyMzQ1Njc4OWE="},
        {b"x-api-key": b"second-0123456789a"},
        {b"token": b"second-0123456789a"},
    ):
        assert keys.find(headers) == 1
    for wrong in ({}, {b"token": b"third"}, {b"authorization": b"Basic ?"}, {b"authorization": b""}):
        assert keys.find(wrong) is None


def test_a_key_may_ask_so_often_and_no_more():
    keys = Keys(("first-0123456789ab",), 10)
    waits = [keys.wait(0) for _ in range(30)]
    assert waits[:20] == [0.0] * 20
    assert 0 < waits[-1] <= 0.1
    time.sleep(waits[-1])
    assert keys.wait(0) == 0


def test_loopback_is_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST")))
    others = ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "::", "", "127.0.0.1.evil.example")
    assert not any(map(is_loopback, others))
