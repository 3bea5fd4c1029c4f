"""How a policy's answers are written: what stands alike where they are measured and where they are trained on."""

from typing import Annotated, Literal

from pydantic import model_validator

from rounds.data_prep.schema import Between, FieldError, Section

EngineName = Literal["transformers", "vllm"]


class Decoding(Section):
    """How long an answer may be, how its tokens are drawn, and by which engine."""

    max_new_tokens: Annotated[int, Between(1, 1_000_000, "an answer has a token, and no model writes more")] = 64
    """Longest answer, in tokens."""
    temperature: Annotated[float, Between(0, 10, "0 takes the likeliest token, and far above 1 all are alike")] = 0.0
    """Of the softmax that tokens are drawn from; 0 is greedy."""
    top_p: Annotated[float, Between(1e-6, 1, "1 draws from all tokens, and the likeliest is always among them")] = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    num_answers: Annotated[int, Between(1, 1000, "each is written token by token")] = 1
    """Answers to each prompt."""
    engine: EngineName = "transformers"
    """What writes them. `vllm` needs `engine_python` in the cluster file's row `generate`. The two write different answers."""

    @model_validator(mode="after")
    def _greedy_is_one(self) -> "Decoding":
        if not self.temperature and self.num_answers > 1:
            raise FieldError(f"expected 1 with temperature 0, found {self.num_answers}: greedy answers are all the same", "num_answers")
        return self
