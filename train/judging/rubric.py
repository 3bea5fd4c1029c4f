"""How two answers are put before a model that judges by a rubric: one text, in which the answers are A and B.

In: a rubric, a prompt and two answers. Out: the text that is asked. Which answer is A is the caller's, who asks in both orders.
"""

from collections.abc import Sequence

from rounds.data_prep.records import Message


def asked(rubric: str, prompt: Sequence[Message], first: str, second: str) -> str:
    """Return the rubric, the conversation, and the two answers under their letters."""
    talk = "\n\n".join(f"{turn.role.upper()}: {turn.content}" for turn in prompt)
    return f"{rubric.strip()}\n\n# Conversation\n\n{talk}\n\n# Answer A\n\n{first}\n\n# Answer B\n\n{second}\n"
