"""How much of a text a vocabulary cannot write."""

from collections import Counter
from collections.abc import Mapping

from asr_lightning.errors import InputError, printable
from asr_lightning.text.tokenizers import Tokenizer

# Of five letters, which an English word has on average, one is lost then: two words of three are wrong at best. Foreign
# names and digits stay below 1 %; text of another script, or of the other case, is lost nearly as a whole.
MOST_LOST = 0.2
NAMED = 10  # of the lost characters


def lost_characters(tokenizer: Tokenizer, characters: Mapping[str, int]) -> Counter[str]:
    """Return how often each character comes that a vocabulary cannot write.

    Args:
        tokenizer: The vocabulary.
        characters: How often each character comes in the text, in Unicode's composed form (NFC).
    """
    return Counter({one: count for one, count in characters.items() if not one.isspace() and tokenizer.loses(one)})


def check_coverage(tokenizer: Tokenizer, characters: Mapping[str, int], name: str) -> str:
    """Say which share of a text a vocabulary cannot write, and what that is; nothing where it can write all.

    Args:
        tokenizer: The vocabulary.
        characters: As `lost_characters` takes them.
        name: Of the text, for the message.

    Raises:
        InputError: The share is that of a text of another script, or of the other case.
    """
    total = sum(count for one, count in characters.items() if not one.isspace())
    lost = lost_characters(tokenizer, characters)
    if not lost:
        return ""
    share = lost.total() / total
    commonest = ", ".join(f"{printable(one)} {count:,} times" for one, count in lost.most_common(NAMED))
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    found = (
        f"{name}: {share:.3%} of {total:,} characters cannot be written by the {type(tokenizer).__name__} and are "
        f"<unk> to it, or nothing: {commonest}{more}"
    )
    if share > MOST_LOST:
        raise InputError(
            f"{found}. Expected a vocabulary for this text, which loses at most {MOST_LOST:.0%} of it. Choose a "
            "tokenizer of its language and of its case, make units from it with `asr units`, "
            "or normalize the transcripts"
        )
    return f"{found}. Words with them count as errors."
