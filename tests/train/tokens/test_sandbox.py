"""A task file's templates see the row and nothing else, and end in bounded time and memory."""

from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.tokens import sandbox

ROWS = [{"id": "a", "question": "Is {{it}} so?\n", "choices": ["[1]", "'b'"]}, {"id": "b", "question": "?", "choices": ["x"]}]


def test_texts_are_rendered_row_by_row():
    found = sandbox.render({"one": "Q: {{question}}", "two": "{{choices}}"}, ROWS, "task 'x'")
    assert found == [{"one": "Q: Is {{it}} so?\n", "two": "['[1]', \"'b'\"]"}, {"one": "Q: ?", "two": "['x']"}]
    assert sandbox.render({}, ROWS, "task 'x'") == [{}, {}]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ cycler.__init__.__globals__.os.system('touch FILE') }}", "SecurityError"),
        ("{{ question.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ choices.append(1) }}", "SecurityError"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ question", "TemplateSyntaxError"),
        ("{{ 'a' * 3000000000 }}", "memory"),
        ("{{ 'a' * 2000000 }}", "2,000,000 characters"),
        ("{% for i in range(99999999) %}x{% endfor %}", "Range too big"),
    ],
)
def test_what_would_do_harm_is_refused_with_the_field_and_the_row(template: str, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"task 'x': .*{says}") as refused:
        sandbox.render({"doc_to_text": template.replace("FILE", str(tmp_path / "made"))}, ROWS, "task 'x'")
    assert "doc_to_text" in str(refused.value) and not (tmp_path / "made").exists()


def test_a_template_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "_SECONDS", 2.0)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% if i < 0 %}x{% endif %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"task 'x': its templates did not render 2 rows within 2 s"):
        sandbox.render({"doc_to_text": endless}, ROWS, "task 'x'")
