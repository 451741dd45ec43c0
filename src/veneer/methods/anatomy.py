"""Where query and value are in each model family, said once.

The names are those of the modules at run time in transformers 5, matched at a `.` boundary.
"""

from collections.abc import Mapping

from veneer.errors import ConfigError

QUERY_VALUE: Mapping[str, tuple[str, str]] = {
    "albert": ("query", "value"),
    "bert": ("query", "value"),
    "camembert": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
    "distilbert": ("q_lin", "v_lin"),
    "electra": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "mpnet": ("attn.q", "attn.v"),
    "qwen2": ("q_proj", "v_proj"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
}
"""Model family, as in config.json's `model_type`, to the names of its query and value projections."""


def query_value(model_type: str) -> tuple[str, str]:
    """Return the names of the query and value projections of a model family.

    Raises:
        ConfigError: the family is not known, or its projections are fused into one layer.
    """
    if model_type not in QUERY_VALUE:
        raise ConfigError(
            f"no query and value projections are known for model family {model_type!r} (known: "
            f"{', '.join(QUERY_VALUE)}); use the method lora-all, or lora-qv with --target NAME for each projection"
        )
    return QUERY_VALUE[model_type]
