"""A held-out prompt is found in a record as it is or re-told with small edits; stock phrases in common are no leak.

Covers: data_prep/filters/_run_index.
"""

import random
import string
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep import filters, render
from rounds.data_prep.records import Conversation, Message, Pair, Question, Record
from rounds.data_prep.schema import FilterUse
from rounds.data_prep.turns import ask

CHOICES = ("3.5", "7", "12", "6.25")
STOCK = "comes to the clinic because of a {} that started three days ago . her pulse is 80 and her blood pressure is 120"
SENTENCES = (
    "A retired gardener of seventy one limps in with a swollen left knee after pruning roses for 40 minutes.",
    "He keeps two parrots and has drunk well water since moving to his late sister's cottage 6 weeks ago.",
    "A thorn is still lodged beside the patella, and the joint fluid is cloudy with 52 thousand cells.",
    "Cultures on sheep's blood grow slow cream colonies that turn yellow after twelve days.",
)
VIGNETTE = " ".join((*SENTENCES, "Which drug is given first?"))
EXAM = Question("q", "exam", (Message("system", "You are a doctor. " * 9), Message("user", VIGNETTE)), ("x", "y"), 0)
SHORT = Question("q", "facts", (Message("user", "Which drug lowers urate?"),), ("x", "y"), 0)
WORDS = st.lists(st.sampled_from([f"{a}{b}" for a in "bcdfgklmnp" for b in ("ora", "itu", "esk", "unn")]), min_size=13)


def answer(records: list[Record], heldout: list[Record], **settings: float) -> list[str | None]:
    use = FilterUse.model_validate({"name": "decontaminate", **settings})
    verdicts = filters.build(use, heldout)(records)
    return [verdict for verdict in verdicts if verdict is None or isinstance(verdict, str)]


def talk(question: str, reply: str = "Fine.", system: str = "", source: str = "s") -> Conversation:
    turns = (Message("user", question), Message("assistant", reply))
    return Conversation("c", source, ((Message("system", system),) if system else ()) + turns)


def stock_patients() -> list[Record]:
    """Held-out questions that share all but the complaint and the age."""
    complaints = (
        "stiff thumb",
        "dry cough",
        "red eye",
        "sore heel",
        "lost voice",
        "numb chin",
        "itchy scalp",
        "loose tooth",
    )
    return [
        Question(each, "exam", (Message("user", f"A woman of {age} " + STOCK.format(each)),), ("x", "y"), 0)
        for age, each in enumerate(complaints, 30)
    ]


def test_a_part_is_found_in_prompt_and_answers() -> None:
    part = f"Case: {SENTENCES[1].upper()}\n{SENTENCES[2]}"
    pair = Pair("p", "s", (Message("user", "Tell me a case."),), "No.", part)
    other = Pair("p", "s", (Message("user", "Tell me a case."),), part, "No.")
    assert answer([talk(part), talk("Tell me a case.", part), pair, other], [EXAM]) == ["overlaps_exam"] * 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda: VIGNETTE.replace("seventy one", "sixty").replace("40", "55").replace("6 weeks", "11 weeks").replace("52", "9"),
        lambda: " ".join(SENTENCES[::-1]),
        lambda: " ".join(SENTENCES[:2]),
        lambda: " ".join((*SENTENCES, "What is the most likely organism?")),
        lambda: VIGNETTE.replace("swollen", "puffy").replace("cloudy", "turbid").replace("cottage", "house")
        .replace("thorn", "spine").replace("slow", "pale").replace("retired", "former").replace("drunk", "had"),
        lambda: " ".join(["Gardens are lovely in spring and need much care."] * 40 + [*SENTENCES[1:], "Think."] * 1),
    ],
    ids=["numbers", "order", "truncated", "stem", "synonyms", "inside a long text"],
)  # fmt: skip
def test_a_retold_vignette_is_found(edit) -> None:
    assert answer([talk(edit())], [EXAM, *stock_patients()]) == ["overlaps_exam"]


def test_stock_phrases_are_no_leak() -> None:
    other = "A woman of 52 " + STOCK.format("swollen wrist") + ". Dogs bit her twice. What should be done now?"
    assert answer([talk(other)], stock_patients()) == [None]
    assert len(STOCK.split(" {} ")[1].split()) > 13, "the plain rule, one run of 13 words, would drop it"


def test_what_a_few_heldout_prompts_share_and_none_has_alone_is_no_leak() -> None:
    values = (
        "sodium one milli potassium two micro chloride four nano urea six deci glucose three centi creatinine five pico calcium ten kilo"
    )
    stories = [" ".join(each + letter for letter in "abcdefghijklmnopqrst") for each in ("gout", "rash", "cough")]
    few = [Question(each[:5], "exam", (Message("user", f"{each}. We find {values}."),), ("x", "y"), 0) for each in stories]
    other = "A nurse cannot sleep since her neighbour plays drums until late every night and nobody else in that house seems to mind at all"
    assert answer([talk(f"{other}. We find {values}. Why?")], [*few]) == [None]
    retold = f"We find {values}. Before it was {' '.join(stories[1].split()[:12])}."
    assert answer([talk(retold)], [*few]) == ["overlaps_exam"]


def test_a_run_of_the_shortest_length_counts_and_one_word_less_does_not() -> None:
    words = VIGNETTE.split()[9:22]
    assert answer([talk(" ".join(words)), talk(" ".join(words[1:]))], [EXAM]) == ["overlaps_exam", None]
    assert answer([talk(" ".join(words[1:]))], [EXAM], min_words=12) == ["overlaps_exam"]


def test_a_system_turn_that_many_share_is_no_overlap_and_one_that_tells_a_prompt_is() -> None:
    assert answer([talk("Hello?", system="You are a doctor. " * 9), talk("Hello?", system=VIGNETTE)], [EXAM]) == [
        None,
        "overlaps_exam",
    ]


@pytest.mark.parametrize("unseen", ["\u00ad", "\u200b", "\u2060", "\ufeff"], ids=ascii)
def test_what_is_not_seen_hides_nothing(unseen: str) -> None:
    hidden = " ".join(f"{word[:2]}{unseen}{word[2:]}" for word in VIGNETTE.split())
    assert answer([talk(hidden), talk(f"Who? {unseen}".join(SENTENCES))], [EXAM]) == [
        "heldout_prompt_exam",
        "overlaps_exam",
    ]


def test_what_looks_alike_is_the_same() -> None:
    wide = "".join(chr(ord(letter) + 0xFEE0) if letter.isalnum() else letter for letter in VIGNETTE)
    bound = VIGNETTE.replace("fi", "\ufb01").replace("ff", "\ufb00")
    assert bound != VIGNETTE
    assert answer([talk(wide), talk(bound)], [EXAM]) == ["heldout_prompt_exam"] * 2


def test_a_short_prompt_counts_only_as_a_whole() -> None:
    other = talk("Please say which drug lowers urate?")
    later = Conversation("c", "s", (*talk("Hello.").messages, *talk("which drug lowers urate").messages))
    told = talk("Tell me something.", "Which drug lowers urate?")
    found = answer([talk("Which drug lowers  URATE?"), later, other, told], [SHORT])
    assert found == ["overlaps_facts", "overlaps_facts", None, None]


def test_a_short_question_is_known_in_every_phrasing_that_it_is_trained_in() -> None:
    """Whatever stands before its options: letters, numbers or dashes; another question with the same options stays."""
    question = Question("q", "exam", ask(render.with_choices("What is the pH of water?", CHOICES)), CHOICES, 1)
    yes = Question("y", "exam", ask(render.with_words("Is ice cold?", ("yes", "no"))), ("yes", "no"), 0)
    for asked in (question, yes):
        rows = [render.to_conversation(asked, seed=seed) for seed in range(40)]
        assert len({row.messages[0].content for row in rows}) >= 4
        assert set(answer([*rows], [question, yes])) <= {"overlaps_exam", "heldout_prompt_exam"}
    lettered = "What is the pH of water?\n\n(a) 3.5\n(b) 7\n(c) 12\n(d) 6.25"
    assert answer([talk(lettered), talk(lettered.replace("water", "blood"))], [question, yes])[1] is None
    assert answer([talk("Is ice hot?\n\nAnswer yes or no.")], [question, yes]) == [None]


def test_a_short_prompt_with_another_number_is_another_prompt() -> None:
    sums = Question("q", "sums", (Message("user", "What is 12 + 30?"),), ("x", "y"), 0)
    assert answer([talk("What is 13 + 30?"), talk("what is 12 + 30")], [sums]) == [None, "overlaps_sums"]


def test_long_choices_count_and_short_ones_do_not() -> None:
    case = Question("q", "cases", (Message("user", "Which case is it?"),), (" ".join(SENTENCES), "A short one."), 0)
    found = answer([talk("Tell me.", " ".join(SENTENCES[:3])), talk("Tell me.", "A short one.")], [case])
    assert found == ["overlaps_cases", None]


def test_a_prompt_is_known_by_its_id_whatever_its_words() -> None:
    name = "0f" * 32
    asked, other = (Message("user", "Name a citrus fruit."),), (Message("user", "Tell me a joke."),)
    heldout: list[Record] = [Pair(f"{name}:1", "snorkel", asked, "A lemon.", "A pear.", name)]
    rows: list[Record] = [
        Pair(f"{name}:2", "ultrafeedback", other, "No.", "Yes.", name),
        Pair(f"{'1e' * 32}:2", "ultrafeedback", other, "No.", "Yes.", "1e" * 32),
    ]
    assert answer(rows, heldout) == ["heldout_prompt_snorkel", None]
    # A group that is no prompt's id (a subject, a counter) is no leak.
    short: list[Record] = [Pair("7:1", "file", other, "No.", "Yes.", "7"), Pair("a/1", "s", other, "No.", "Yes.", name)]
    held: list[Record] = [Pair("7:2", "file", asked, "No.", "Yes.", "7"), Pair("a/2", "s", asked, "No.", "Yes.", name)]
    assert answer(short, held) == [None, None]


def test_the_same_prompt_is_known_although_all_its_words_are_stock() -> None:
    heldout = stock_patients() * 4
    again = talk("A woman of 30 " + STOCK.format("stiff thumb"))
    assert answer([again], heldout, min_weight=1000) == ["heldout_prompt_exam"]


def test_without_heldout_records_all_stay() -> None:
    assert answer([talk(VIGNETTE)], []) == [None]


def test_texts_without_latin_words_do_no_harm() -> None:
    odd = ["", "?!", "что это", "\ud800", "0" * 99, "٣ ³ é", "一" * 50]
    heldout: list[Record] = [talk(text, source="odd") for text in odd]
    assert answer([talk(text) for text in odd[1:]], heldout) == ["overlaps_odd"] * 6
    assert answer([talk("да")], heldout) == [None]


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(0, 7))
def test_an_identical_prompt_is_always_caught(prompts: list[list[str]], place: int) -> None:
    heldout: list[Record] = [talk(" ".join(each), source="exam") for each in prompts]
    [found] = answer([talk(" ".join(prompts[place % len(prompts)]).upper() + ".")], heldout)
    assert found in ("overlaps_exam", "heldout_prompt_exam")


@given(st.integers(0, 10_000), st.integers(13, 400))
def test_unrelated_words_are_never_caught(seed: int, length: int) -> None:
    draw = random.Random(seed)
    words = [a + b * 2 for a in "bcdfgklmnprst" for b in string.ascii_lowercase]
    texts = [" ".join(draw.choice(words) for _ in range(length)) for _ in range(6)]
    heldout: list[Record] = [talk(text) for text in texts[:3]]
    assert answer([talk(text, text) for text in texts[3:]], heldout) == [None] * 3


@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_the_order_and_the_batches_of_rows_change_no_verdict(draw: random.Random, size: int) -> None:
    rows = [talk(f"Hm. {VIGNETTE}"), talk(" ".join(SENTENCES[1:3])), talk("Which drug lowers urate?"), talk("Hello."),
            talk("A woman of 52 " + STOCK.format("swollen wrist"))]  # fmt: skip
    places = draw.sample(range(5), 5)
    rule = filters.build(FilterUse(name="decontaminate"), [EXAM, SHORT, *stock_patients()])
    found = [verdict for start in range(0, 5, size) for verdict in rule([rows[place] for place in places[start : start + size]])]
    assert [found[places.index(place)] for place in range(5)] == [
        "overlaps_exam",
        "overlaps_exam",
        "overlaps_facts",
        None,
        None,
    ]


def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "scripts" / "bench_decontaminate"
    spec = spec_from_loader("bench_decontaminate", SourceFileLoader("bench_decontaminate", str(path)))
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recall_and_precision_on_the_labelled_trap(shared_data: Path) -> None:
    script = bench()
    vars(script)["DATA"] = shared_data
    trap = script.build_trap("untouched")
    # The large clean sets have next to no false finds; a twentieth of them keeps the test short.
    trap.clean["medquad"][:] = trap.clean["medquad"][::20]
    found = script.judge(trap, filters.build(FilterUse(name="decontaminate"), trap.heldout))
    recall, precision, _ = script.summary(trap, found)
    assert recall >= 0.99
    assert precision >= 0.95
    assert script.among_exams(trap, found)[1] >= 0.95
    assert found["medec re-tells"][0] == found["medec re-tells"][1] > 20
