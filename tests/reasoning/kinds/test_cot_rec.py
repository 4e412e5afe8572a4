"""Typed steps: what SFT starts from, and how they are read back."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.completion import parse, render
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.kinds.asking import taught
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.reasoning.kinds.typed import read_typed

NAMES = ("Profile", "Intention")


def test_rationales_are_the_commonest_attributes_and_those_of_the_target(make_world):
    world = make_world()
    task = taught(world.task, load_kind("cot_rec"))
    assert list(task.rationales) == list(world.task.rationales)
    rows = {row["example_id"]: row for row in world.task.examples.iter_rows(named=True)}
    items = {row["item_id"]: row for row in world.task.interactions.items.iter_rows(named=True)}
    for example_id, ((profile, intention),) in task.rationales.items():
        row = rows[example_id]
        values = [value for item in row["history"] for value in (items[item]["sort"], items[item]["material"])]
        named = profile.removeprefix("Profile: ").split(", ")
        assert values.count(named[0]) == max(map(values.count, values))
        assert [values.count(value) for value in named] == sorted(map(values.count, named), reverse=True)
        target = items[row["target_id"]]
        assert intention == f"Intention: {target['sort']}, {target['material']}"
        assert read_typed((profile, intention), NAMES).in_form


def test_the_toy_world_says_what_is_truly_wanted():
    task = load_task(DataArguments(toy_users=40, toy_categories=5, rationale_share=0.5))
    rationales = taught(task, load_kind("cot_rec")).rationales
    for example_id, (steps,) in rationales.items():
        given = {step.split(": ")[0]: step.split(": ")[1] for step in task.rationales[example_id][0]}
        wanted = f"{given['next']} {given['grade'].split('then ')[1]}, {given['style']}"
        assert steps[1] == f"Intention: {wanted}"
    orders = load_task(DataArguments(dataset="toy-orders", toy_users=40, rationale_share=1.0))
    world, rationales = orders.world, taught(orders, load_kind("cot_rec")).rationales
    example_id, (steps,) = next(iter(rationales.items()))
    assert steps[1] == f"Intention: {world.order(example_id.split(':')[0], orders.position(example_id))[0]}"


def test_rationales_from_a_file_stay_and_those_in_another_form_are_counted(make_world, tmp_path, caplog):
    world = make_world()
    args = dataclasses.replace(world.task.args, rationales_path=str(tmp_path))
    first, second, *_ = world.task.rationales
    given = {first: [("Profile: tea", "Intention: mug"), ("likes tea",)], second: [("Profile: tea",)]}
    task = dataclasses.replace(world.task, args=args, rationales=given)
    assert taught(task, load_kind("cot_rec")) is task
    assert "2 of 3 rationales have not the steps of cot_rec: Profile, Intention, once each" in caplog.text
    caplog.clear()
    assert taught(task, load_kind("steps")) is task
    assert not caplog.text


@pytest.mark.parametrize(
    ("written", "said", "missing", "repeated", "unknown", "in_form"),
    [
        ("Profile: tea\nIntention: mug ->", {"Profile": "tea", "Intention": "mug"}, (), (), 0, True),
        (" profile :tea\n\nINTENTION: a: b ->", {"Profile": "tea", "Intention": "a: b"}, (), (), 0, True),
        ("Intention: mug\nProfile: tea ->", {"Profile": "tea", "Intention": "mug"}, (), (), 0, False),
        ("Intention: mug ->", {"Intention": "mug"}, ("Profile",), (), 0, False),
        ("Profile: a\nProfile: b\nIntention: c ->", {"Profile": "a", "Intention": "c"}, (), ("Profile",), 0, False),
        ("Profile: tea\nMood: x\nIntention: mug ->", {"Profile": "tea", "Intention": "mug"}, (), (), 1, False),
        ("Profile:\nIntention: mug ->", {"Intention": "mug"}, ("Profile",), (), 1, False),
        ("Profile tea Intention mug ->", {}, NAMES, (), 1, False),
        ("->", {}, NAMES, (), 0, False),
        ("", {}, NAMES, (), 0, False),
        ("Profile: tea\nInten", {"Profile": "tea"}, ("Intention",), (), 1, False),
        ("Profile: -> Intention: mug", {}, NAMES, (), 1, False),
    ],
)
def test_typed_steps_are_read_back(written, said, missing, repeated, unknown, in_form):
    typed = read_typed(parse(written).steps, NAMES)
    assert (typed.said, typed.missing, typed.repeated, typed.unknown) == (said, missing, repeated, unknown)
    assert typed.in_form == in_form


LINE = (
    st.text(min_size=1, max_size=20)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text and "->" not in text and text.splitlines() == [text])
)


@given(LINE, LINE)
def test_what_is_written_in_form_is_read_back(likes, wants):
    steps = (f"Profile: {likes}", f"Intention: {wants}")
    typed = read_typed(parse(render(steps, "mug")).steps, NAMES)
    assert typed.in_form
    assert typed.said == {"Profile": likes, "Intention": wants}


@given(st.lists(st.text(max_size=20)))
def test_nothing_that_is_written_is_an_error(steps):
    typed = read_typed(steps, NAMES)
    assert set(typed.said) | set(typed.missing) == set(NAMES)
