# SPDX-License-Identifier: Apache-2.0
"""What is known of a repository's branches: what was missed, and what is only told twice."""

import json
import random

import pytest

from zamu.intake.heads import RELEASES, Known, Move, head


def known(**heads: str) -> Known:
    found = Known(None)
    found.begin(heads, [])
    return found


def heard(it: Known, before: str, after: str) -> None:
    it.heard(Move("main", before, after), f"{before} {after} {it.moves('main')}")


def caught_up(it: Known, **heads: str) -> list[Move]:
    moves = it.missed(heads)
    it.answered(moves, heads)
    return moves


def test_zeros_are_no_commit() -> None:
    assert head("0" * 40) == head("0" * 64) == head("") == ""
    assert head("0" * 39 + "1") != ""


def test_before_the_first_answer_nothing_is_missed_and_nothing_is_told() -> None:
    it = Known(None)
    heard(it, "a", "b")
    assert it.noted is None
    assert it.missed({"main": "c"}) == []
    assert not it.is_told(Move("main", "a", "b"), "body")


def test_what_was_heard_is_not_missed() -> None:
    it = known(main="a")
    heard(it, "a", "b")
    assert caught_up(it, main="b") == []


def test_a_head_that_nobody_told_is_missed_once() -> None:
    it = known(main="a")
    assert caught_up(it, main="c") == [Move("main", "a", "c")]
    assert caught_up(it, main="c") == []


def test_new_and_deleted_branches_are_missed() -> None:
    it = known(main="a", old="x")
    assert caught_up(it, main="a", new="y") == [Move("new", "", "y"), Move("old", "x", "")]
    assert caught_up(it, main="a", new="y") == []
    assert caught_up(it, main="a", new="y", old="x") == [Move("old", "", "x")]


def test_a_new_branch_or_deletion_that_was_heard_is_not_missed() -> None:
    it = known(main="a", old="x")
    it.heard(Move("new", "", "y"), "1")
    it.heard(Move("old", None, ""), "2")
    assert caught_up(it, main="a", new="y") == []


def test_the_message_of_a_push_that_was_caught_up_tells_nothing_new_and_never_will() -> None:
    it = known(main="a")
    caught_up(it, main="b")
    assert it.is_told(Move("main", "a", "b"), "body")
    heard(it, "b", "a")
    assert it.is_told(Move("main", "a", "b"), "body")
    # That it went there again cannot be told from a message that is late: the next answer tells it.
    assert it.is_told(Move("main", "a", "b"), "another body")
    assert caught_up(it, main="b") == [Move("main", "a", "b")]


def test_the_message_of_a_deletion_that_was_caught_up_tells_nothing_new() -> None:
    it = known(old="x")
    caught_up(it)
    assert it.is_told(Move("old", None, ""), "body")
    it = known(old="x")
    assert not it.is_told(Move("old", None, ""), "body")


def test_an_older_push_that_comes_late_does_not_move_the_branch_back() -> None:
    it = known(main="a")
    heard(it, "b", "c")  # a -> b was lost
    heard(it, "a", "b")  # and is sent by hand
    assert caught_up(it, main="c") == []


def test_a_branch_that_goes_back_is_followed() -> None:
    it = known(main="a")
    heard(it, "a", "b")
    assert caught_up(it, main="a") == [Move("main", "b", "a")]
    heard(it, "a", "b")
    heard(it, "b", "a")
    assert caught_up(it, main="a") == []


def test_the_same_move_missed_twice_has_another_number() -> None:
    it = known(main="a")
    numbers = []
    for _ in range(2):
        numbers.append(it.moves("main"))
        assert caught_up(it, main="b")
        heard(it, "b", "a")
    assert len(set(numbers)) == 2


def test_a_branch_that_is_gone_for_long_is_forgotten() -> None:
    it = known(main="a", old="x")
    caught_up(it, main="a")
    caught_up(it, main="a")
    assert it.noted is not None
    assert set(it.noted["branches"]) == {"main"}


def test_only_new_releases_are_missed() -> None:
    it = Known(None)
    it.begin({}, [1, 2])
    it.release_heard(4)
    assert it.new_releases([1, 2, 3, 4]) == [3]
    it.release_heard(3, caught=True)
    assert (it.is_release_told(3), it.is_release_told(4)) == (True, False)
    assert it.new_releases([1, 2, 3, 4]) == []


def test_an_old_release_that_moves_up_in_a_cut_list_is_not_new() -> None:
    it = Known(None)
    it.begin({}, list(range(100, 100 + RELEASES)))
    assert it.new_releases([99, 100, 100 + RELEASES]) == [100 + RELEASES]


def test_it_can_be_kept_as_json() -> None:
    it = known(main="a")
    caught_up(it, main="b")
    again = Known(json.loads(json.dumps(it.noted)))
    assert again.missed({"main": "b"}) == []
    assert again.is_told(Move("main", "a", "b"), "body")


@pytest.mark.parametrize("broken", [[], "text", 3, None])
def test_what_is_no_note_is_none(broken: object) -> None:
    assert Known(broken).noted is None


class House:
    """A forge and what hears it, by chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.known = known(main="0")
        self.now = "0"
        self.sent: list[Move] = []
        self.on_its_way: list[Move] = []
        self.told: list[str] = []

    def goes_on(self) -> None:
        act = self.chance.choice(
            [self.pushes] * 2 + [self.delivers] * 2 + [self.loses, self.asks, self.again]
        )
        act()

    def pushes(self) -> None:
        before, self.now = self.now, str(len(self.sent) + 1)
        self.sent.append(Move("main", before, self.now))
        self.on_its_way.append(self.sent[-1])

    def delivers(self) -> None:
        if self.on_its_way:
            overtakes = self.chance.random() < 0.2
            self.arrives(self.on_its_way.pop(self.chance.randrange(len(self.on_its_way)) if overtakes else 0))

    def loses(self) -> None:
        if self.on_its_way:
            self.on_its_way.pop(0)

    def again(self) -> None:
        if self.sent:
            self.arrives(self.chance.choice(self.sent[-4:]))

    def arrives(self, move: Move) -> None:
        # The journal knows a body that it has.
        if f"message {move.after}" not in self.told and not self.known.is_told(move, move.after):
            self.told.append(f"message {move.after}")
            self.known.heard(move, move.after)

    def asks(self) -> None:
        self.told += [f"caught up {move.after}" for move in caught_up(self.known, main=self.now)]


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_lost_late_or_sent_again_no_push_is_told_twice_and_no_head_is_missed(seed: int) -> None:
    """Pushes whose messages arrive, get lost, overtake each other or are sent again, and answers between."""
    house = House(random.Random(seed))
    for _ in range(40):
        house.goes_on()
    for move in house.on_its_way:
        house.arrives(move)
    house.asks()
    told, now = house.told, house.now
    heads = [line.rpartition(" ")[2] for line in told]
    assert len(heads) == len(set(heads)), told
    assert now == "0" or now in heads
