"""The values that a model's configuration files may hold: sane ones, before anything is built."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuninglab.untrusted import shown

# Of any number: beyond it nothing computes, in 32 bits.
LARGEST = 1e38
# Ranges of keys, whatever library or model has them; well beyond all that were released (126 layers
# are the most of Llama 3, 262,144 tokens of Gemma 3, 10 million positions of Llama 4 Scout).
RANGES = (
    (r"(num_|n_)?(hidden_|encoder_|decoder_)?layers?|perceiver_depth", 1, 512),
    (r"(\w*_)?heads?(_kv)?|cross_attn_every_n_layers", 1, 4096),
    (r"hidden_size|d_model|d_kv|n_embd|head_dim|word_embed_proj_dim|\w*_dim_head", 1, 2**20),
    (r"intermediate_size|d_ff|n_inner|ffn_dim|decoder_ffn_dim|encoder_ffn_dim", 0, 2**20),
    (r"vocab_size", 1, 2**24),
    (r"max_position_embeddings|max_seq_len|n_ctx", 1, 2**24),
    # GPT-2 and GPT-J keep a mask of its square.
    (r"n_positions", 1, 2**16),
    (r"image_size|patch_size|size|crop_size|height|width|(short|long)est_edge", 1, 4096),
    (r"max_(height|width)", 1, 4096),
    (r"num_channels|ff_mult", 1, 64),
    (r"perceiver_latents|relative_attention_num_buckets", 1, 2**16),
    (r"relative_attention_max_distance", 1, 2**20),
    (r"num_register_tokens|num_(local_)?experts", 0, 4096),
    (r"(\w*_)?(eps|epsilon)|\w*dropout\w*|\w*(pdrop|drop_rate|drop_prob|layerdrop)|top_p", 0, 1),
    (r"rope_theta|rotary_emb_base|rope_local_base_freq", 1e-3, 1e12),
    (r"initializer_(range|factor)", 0, 100),
    (r"rescale_factor|image_mean", -1000, 1000),
    (r"image_std", 1e-6, 1000),
    (r"resample", 0, 5),
    (r"num_(beams|beam_groups|return_sequences)", 1, 64),
    (r"(max|min)_(new_tokens|length)|top_k|no_repeat_ngram_size", 0, 2**24),
    (r"model_max_length", 1, math.inf),
)
# Ids of tokens: whole numbers, below the rows of the table where that is known; -1 is none.
TOKEN_IDS = re.compile(r"\w*token_ids?|(bad|force)_words_ids|(begin_)?suppress_tokens")
# Of these alone the libraries take a list.
LISTED = re.compile(r"(forced_)?eos_token_id|\w*_ids|\w*_tokens")
# A tower of text that nothing runs keeps ids of another vocabulary (SigLIP): harmless but for this.
INDEXED = re.compile(r"pad_token_id|(bad|force)_words_ids|(begin_)?suppress_tokens")


def problem(values: Mapping[Any, Any], rows: Any = None) -> str:
    """What is wrong with the values of a configuration, at any depth; "" if nothing is.

    Args:
        values: the content of a JSON file.
        rows: of the token table, where another file says it.
    """
    own = values.get("vocab_size")
    for key, value in values.items():
        if isinstance(value, Mapping):
            found = problem(value, rows)
        else:
            # A table may yet grow to the pad token of other files; that of a configuration is
            # made with it.
            table = own if key == "pad_token_id" or own is not None else rows
            found = _problem_of(str(key), value, table)
        if found:
            return found
    return ""


def _problem_of(key: str, value: Any, rows: Any) -> str:
    expected = ""
    if TOKEN_IDS.fullmatch(key):
        top = rows - 1 if INDEXED.fullmatch(key) and isinstance(rows, int) else 2**24
        expected = _no_ids(key, value, top)
    elif key in ("dtype", "torch_dtype") and value is not None:
        # Weights are floats; what is quantised says so elsewhere.
        known = isinstance(value, str) and re.fullmatch(
            r"(torch\.)?b?float(16|32|64|8_\w+)|auto", value
        )
        expected = "" if known else "float32, bfloat16 or float16"
    elif key == "model_max_length" and not (_is_number(value) or value is None):
        expected = "a number"
    for pattern, least, most in RANGES:
        if re.fullmatch(pattern, key) and not all(least <= n <= most for n in _numbers(value)):
            expected = f"a number from {least:,} to {most:,}"
    # The end of a range may be open: time_step_limit of Mamba.
    finite = LARGEST if not isinstance(value, list) else math.inf
    if not expected and not all(abs(n) <= finite for n in _numbers(value)):
        expected = "a finite number" if key != "model_max_length" else ""
    return f"{key} is {shown(repr(value))}; expected {expected}" if expected else ""


def _no_ids(key: str, value: Any, top: int) -> str:
    """What is expected in place of a value that is no id, and no list of some where one may be."""
    if value is None or value == []:
        return ""
    ids = list(_leaves(value)) if LISTED.fullmatch(key) else [value]
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    return "" if whole and all(-1 <= one <= top for one in ids) else f"token ids from 0 to {top:,}"


def _numbers(value: Any) -> Iterator[int | float]:
    return (one for one in _leaves(value) if _is_number(one))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
