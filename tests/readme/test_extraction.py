"""What is read from a page is what a person would type."""

import pytest

from tests.readme.extraction import (
    Block,
    Command,
    Scene,
    Snippet,
    blocks,
    commands_in,
    first_section,
    needs,
    port_of,
    ports_asked,
    scenes,
    steps_of,
    with_ports,
)

PAGE = """\
# A page

Build with `make wheel`; `make` alone helps, and `ascend-moe serve` is only mentioned.

```sh
ascend-moe doctor   # is all well?

ascend-moe serve MODEL \\
    --tp-size 2
```

## First

```python
print("# not a comment")
```

```text
not typed
```

```sh
torchrun --nproc-per-node 2 example.py
curl http://127.0.0.1:30000/generate -d '{"text": "# The experts"}'
```

```python
import sys
```

## Second

```sh
ascend-moe bench exchange
```

Install with `pip install -e .` in a clone.
"""


def typed(*commands: str, page: str = "page") -> list[Command]:
    return [Command(page, number, command) for number, command in enumerate(commands)]


def test_blocks_have_a_language_and_a_line():
    assert list(blocks("text\n```sh\na\n\nb\n```\n```\nc\n```\n")) == [Block("sh", 3, "a\n\nb\n"), Block("", 8, "c\n")]


def test_a_block_that_does_not_end_is_an_error():
    with pytest.raises(ValueError, match="the block of line 2 does not end"):
        list(blocks("```sh\nascend-moe doctor\n"))


def test_a_first_section_ends_at_the_second_heading():
    assert first_section("a\n## b\n```sh\n## c\n```\n### d\n## e\nf\n") == "a\n## b\n```sh\n## c\n```\n### d\n"


def test_a_page_with_one_section_is_its_first_section():
    assert first_section("a\n## b\nc\n") == "a\n## b\nc\n"


@pytest.mark.parametrize(
    ("block", "commands"),
    [
        pytest.param("a b\n", [(0, "a b")], id="one"),
        pytest.param("\n# of a\na\n\nb\n", [(2, "a"), (4, "b")], id="lines that say nothing"),
        pytest.param("a  # why\nb '# c' \"#\" d#e # f\n", [(0, "a"), (1, "b '# c' \"#\" d#e")], id="comments"),
        pytest.param("a \\\n    --b \\\n    c\nd\n", [(0, "a --b c"), (3, "d")], id="continued"),
    ],
)
def test_commands_of_a_block(block: str, commands: list[tuple[int, str]]):
    assert list(commands_in(block)) == commands


def test_steps_of_a_page_come_in_its_order():
    assert steps_of("page", PAGE) == [
        Command("page", 3, "make wheel"),
        Command("page", 6, "ascend-moe doctor"),
        Command("page", 8, "ascend-moe serve MODEL --tp-size 2"),
        Snippet("page", 15, 'print("# not a comment")\n', "example.py"),
        Command("page", 23, "torchrun --nproc-per-node 2 example.py"),
        Command("page", 24, 'curl http://127.0.0.1:30000/generate -d \'{"text": "# The experts"}\''),
        Snippet("page", 28, "import sys\n", ""),
        Command("page", 34, "ascend-moe bench exchange"),
        Command("page", 37, "pip install -e ."),
    ]


@pytest.mark.parametrize(
    ("server", "port"),
    [
        ("ascend-moe serve MODEL", 30000),
        ("sglang serve --model-path MODEL", 30000),
        ("ascend-moe disagg up --model-path MODEL", 8000),
        ("ascend-moe disagg up --port 9000", 9000),
        ("ascend-moe serve MODEL --port=9000", 9000),
    ],
)
def test_servers_listen_where_they_are_told_or_at_their_default(server: str, port: int):
    assert port_of(server) == port


@pytest.mark.parametrize(
    ("command", "filled"),
    [
        ("ascend-moe serve MODEL", "ascend-moe serve MODEL --port 1"),
        ("ascend-moe serve MODEL --port 30000 --tp-size 2", "ascend-moe serve MODEL --port 1 --tp-size 2"),
        ("curl http://127.0.0.1:30000/a -d 30000", "curl http://127.0.0.1:1/a -d 30000"),
        ("check --url http://localhost:8000 --reference http://127.0.0.1:30000",
         "check --url http://localhost:2 --reference http://127.0.0.1:1"),
    ],
    ids=["added to a server", "replaced at a server", "in an address", "in two addresses"],
)  # fmt: skip
def test_only_ports_are_filled_in(command: str, filled: str):
    assert with_ports(command, {30000: 1, 8000: 2}) == filled


def test_ports_are_asked_by_address_only():
    assert ports_asked("doctor --url http://127.0.0.1:30000 --ranks 8000") == {30000}
    assert ports_asked("ascend-moe doctor") == set()


def test_a_client_asks_the_last_server_before_it():
    first, ask, second, again = steps = typed(
        "ascend-moe serve A", "curl localhost:30000/a", "sglang serve B", "curl localhost:30000/b"
    )
    assert scenes(steps) == [Scene((first,), (ask,)), Scene((second,), (again,))]


def test_other_ways_to_start_a_server_are_asked_by_nobody():
    first, ask, one, other, again = steps = typed(
        "ascend-moe serve A", "curl localhost:30000/a",
        "python -m sglang.launch_server A", "sglang serve A", "curl localhost:30000/b",
    )  # fmt: skip
    assert scenes(steps) == [Scene((first,), (ask, again)), Scene((one,), ()), Scene((other,), ())]


def test_a_server_that_two_pages_start_alike_is_started_once():
    steps = [
        *typed("ascend-moe serve A", "curl localhost:30000/a"),
        *typed("ascend-moe serve A", "curl localhost:30000/b", page="other"),
        *typed("curl localhost:30000/c", page="without server"),
    ]
    assert scenes(steps) == [Scene((steps[0],), (steps[1], steps[3], steps[4]))]


def test_servers_that_one_command_asks_run_at_the_same_time():
    server, deployment, alone, both = steps = typed(
        "ascend-moe serve A", "ascend-moe disagg up", "curl localhost:8000", "a localhost:8000 localhost:30000"
    )
    assert scenes(steps) == [Scene((deployment,), (alone,)), Scene((server, deployment), (both,))]


def test_a_server_that_nobody_asks_is_a_scene_of_its_own():
    (server,) = typed("ascend-moe serve A")
    assert scenes([server]) == [Scene((server,), ())]


def test_a_port_without_a_server_is_an_error():
    with pytest.raises(ValueError, match="page:0: no documented server listens at port 8000"):
        scenes(typed("curl localhost:8000"))


def test_a_step_needs_those_before_it_that_name_its_files():
    record, unlike, report, later = typed(
        "bench --json quick.json", "bench --json other.json", "report quick.json", "report quick.json --plot a.svg"
    )
    steps = [record, unlike, report, later, *typed("bench --json quick.json", page="other")]
    assert needs(report, steps) == [record]
    assert needs(later, steps) == [record, report]
    snippet, run = [Snippet("page", 1, "", "example.py"), Command("page", 9, "torchrun example.py")]
    assert needs(run, [snippet, run]) == [snippet]


def test_files_of_the_repository_are_named_with_their_folder():
    assert Command("page", 1, "disagg render --file launch/examples/a3_1p1d.toml").files == frozenset()
