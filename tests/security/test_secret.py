"""A secret is read from a private file only, and a seal holds for one purpose, sender, challenge and content."""

import os
import secrets
import stat
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.instance import answer_challenge, unsealed
from sglang_ascend_moe.exchange.control.secret import (
    CHALLENGE_BYTES,
    NO_SEAL,
    Secret,
    draw_challenge,
    read_secret,
    require_seal,
)
from tests.security.drawn_blocks import INSTANCE

SECRET = Secret(secrets.token_bytes(32))
OTHER = Secret(secrets.token_bytes(32))
CHALLENGES = (draw_challenge(), draw_challenge())


def secret_file(folder: Path, value: bytes = bytes(32), mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(value)
    path.chmod(mode)
    return path


def test_a_private_file_of_enough_bytes_is_a_secret(tmp_path):
    secret = read_secret(secret_file(tmp_path))
    assert secret.seal("p", 0, [], b"x") == Secret(bytes(32)).seal("p", 0, [], b"x")
    assert read_secret(None) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o644], ids=oct)
def test_a_file_that_others_may_use_is_refused(tmp_path, mode):
    with pytest.raises(InvalidInput, match=f"mode {mode:04o}: others may use it; chmod 600 it"):
        read_secret(secret_file(tmp_path, mode=mode))


@pytest.mark.parametrize("size", [0, 31, (1 << 16) + 1])
def test_a_file_of_another_size_is_refused(tmp_path, size):
    with pytest.raises(InvalidInput, match="has to hold 32 to 65536 bytes"):
        read_secret(secret_file(tmp_path, bytes(size)))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name, problem in (("missing", "No such file"), ("fifo", "no regular file"), ("folder", "no regular file")):
        with pytest.raises(InvalidInput, match=problem):
            read_secret(tmp_path / name)


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = secret_file(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat()[stat.ST_UID] + 1)
    with pytest.raises(InvalidInput, match="belongs to user"):
        read_secret(path)


def test_a_secret_is_not_printed(tmp_path):
    assert "\\x00" not in repr(read_secret(secret_file(tmp_path))) + str(read_secret(secret_file(tmp_path)))


@pytest.mark.parametrize(
    ("purpose", "sender", "challenges", "data"),
    [
        pytest.param("greet", 1, CHALLENGES, b"data", id="another purpose"),
        pytest.param("meet", 2, CHALLENGES, b"data", id="another sender"),
        pytest.param("meet", 1, CHALLENGES[::-1], b"data", id="challenges of other ranks"),
        pytest.param("meet", 1, (CHALLENGES[0], draw_challenge()), b"data", id="replayed"),
        pytest.param("meet", 1, CHALLENGES[:1], CHALLENGES[1] + b"data", id="other borders"),
        pytest.param("meet", 1, CHALLENGES, b"date", id="other content"),
    ],
)
def test_a_seal_holds_for_nothing_else(purpose, sender, challenges, data):
    seal = SECRET.seal("meet", 1, CHALLENGES, b"data")
    require_seal(SECRET, seal, "meet", 1, CHALLENGES, b"data", "rank 1")
    with pytest.raises(ProtocolMismatch, match="rank 1"):
        require_seal(SECRET, seal, purpose, sender, challenges, data, "rank 1")


@pytest.mark.parametrize(
    ("secret", "seal", "message"),
    [
        pytest.param(SECRET, NO_SEAL, "does not seal its control blocks", id="no seal where one is due"),
        pytest.param(None, OTHER.seal("p", 0, [], b""), "this one has no secret", id="a seal without a secret"),
        pytest.param(SECRET, OTHER.seal("p", 0, [], b""), "holds another secret", id="another secret"),
        pytest.param(SECRET, b"", "wrong seal", id="a seal of no length"),
    ],
)
def test_a_wrong_seal_is_refused(secret, seal, message):
    with pytest.raises(ProtocolMismatch, match=message):
        require_seal(secret, seal, "p", 0, [], b"", "rank 0")


def test_an_instance_seals_itself_for_one_challenge():
    challenge = draw_challenge()
    said = msgspec.to_builtins(answer_challenge(SECRET, INSTANCE, challenge.hex()))
    assert unsealed(SECRET, said, challenge, "it") == INSTANCE
    changed = {**said, "instance": {**said["instance"], "tp_size": 4}}
    for answer, secret, drawn in (
        (changed, SECRET, challenge),
        (said, OTHER, challenge),
        (said, SECRET, draw_challenge()),
    ):
        with pytest.raises(ProtocolMismatch, match=r"\bit\b"):
            unsealed(secret, answer, drawn, "it")
    with pytest.raises(ProtocolMismatch, match=r"\bit\b"):
        unsealed(SECRET, {"instance": said["instance"]}, challenge, "it")
    with pytest.raises(ProtocolMismatch, match="surrogates not allowed"):
        unsealed(SECRET, {**said, "instance": {**said["instance"], "model": "\ud9f1"}}, challenge, "it")


@pytest.mark.parametrize("challenge", ["", "zz", "00", "00" * (CHALLENGE_BYTES + 1)])
def test_a_challenge_of_another_form_is_not_answered(challenge):
    with pytest.raises(InvalidInput, match="hexadecimal digits"):
        answer_challenge(SECRET, INSTANCE, challenge)
