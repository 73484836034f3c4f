"""Text -> words, the same for every lexical index: lower case, English stems, scripts without spaces cut.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no space between words. A run of such letters becomes its single
letters and its pairs of neighbours, so that a word of one letter is found, and longer ones count for more.
"""

from itertools import pairwise

import regex
import tantivy

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUN = regex.compile(rf"[{_UNSPACED}][{_UNSPACED}\p{{M}}ー]*")
_LETTER = regex.compile(r"\X")
_LONGEST = 40


def analyzer() -> tantivy.TextAnalyzer:
    """Letters and digits between anything else, at most 40 bytes long, in lower case, English endings cut."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.remove_long(_LONGEST))
    return builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.stemmer("english")).build()


def separate(text: str) -> str:
    """The text with runs of letters of unspaced scripts replaced by their letters and pairs."""
    return str(_RUN.sub(lambda match: f" {' '.join(_pieces(match[0]))} ", text))


def _pieces(run: str) -> list[str]:
    letters = _LETTER.findall(run)
    return [*letters, *(left + right for left, right in pairwise(letters))]
