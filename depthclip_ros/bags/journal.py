# SPDX-License-Identifier: Apache-2.0
"""The folder of a bag that is not complete yet, and what of it is.

`NAME.partial` beside the output holds `bag/`, which becomes the output when it is complete, and
`journal`: a line of what is converted and how, then a line for every file that is complete.
A file is renamed first and noted then; what was not noted is made again, from the same messages,
and so the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from ..sources.bag import BagError
from .target import METADATA, sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUFFIX = '.partial'


class Workplace:
    """Where a bag is made; nobody else works there at the same time."""

    def __init__(self, output: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or take it up where an earlier run left it.

        Args:
            output: the bag to make.
            identity: what is converted and how, as JSON has it.
            resume: whether there may be something already.

        Raises:
            BagError: the output is there; or something of it is, and is not to be resumed, is of
                another conversion, or in use.

        """
        self.output = output
        self._root = output.with_name(output.name + SUFFIX)
        self.folder = self._root / 'bag'
        self.done: list[dict[str, Any]] = []
        check_free(output)
        if self._root.exists() and not resume:
            raise BagError(f'{self._root} is there: an earlier run did not complete {output}. '
                           'Go on with --resume, or remove that folder.')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = (self._root / 'journal').open('a+', encoding='utf-8')
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BagError(f'{self._root} is in use by another process.') from error
        except OSError as error:
            raise BagError(f'{output} cannot be written: {error.strerror}. Choose another place '
                           'with -o.') from error
        self._take_up(json.loads(json.dumps(identity)))

    def _take_up(self, identity: dict[str, Any]) -> None:
        self._journal.seek(0)
        lines = self._journal.read().splitlines(keepends=True)
        entries: list[dict[str, Any]] = []
        for line in lines:
            entry = _entry(line)
            if entry is None:  # the run was stopped while it wrote this line
                break
            entries.append(entry)
        if entries and entries[0] != identity:
            different = sorted(key for key in {*entries[0], *identity}
                               if entries[0].get(key) != identity.get(key))
            raise BagError(f'{self._root} is of another conversion: {", ".join(different)} '
                           'differ. Give the same arguments, or remove that folder.')
        for entry in entries[1:]:
            if not self._is_whole(entry['part']):
                break
            self.done.append(entry)
        self._journal.seek(0)
        self._journal.truncate()
        for entry in (identity, *self.done):
            self._write(entry)

    def _is_whole(self, part: dict[str, Any]) -> bool:
        try:
            with (self.folder / part['name']).open('rb') as file:
                return sha256_of(file) == str(part['sha256'])
        except OSError:
            return False

    def note(self, entry: dict[str, Any]) -> None:
        """Note a file that is complete."""
        self._write(entry)
        self.done.append(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        self._journal.write(json.dumps(entry) + '\n')
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def complete(self, metadata: bytes) -> None:
        """Give the bag its name; that it is complete, nobody may see before."""
        path = self.folder / METADATA
        with path.open('wb') as file:
            file.write(metadata)
            file.flush()
            os.fsync(file.fileno())
        noted = {entry['part']['name'] for entry in self.done} | {METADATA}
        for left in self.folder.iterdir():
            if left.name not in noted:  # what a stopped run had begun
                left.unlink()
        check_free(self.output)
        self.folder.rename(self.output)
        self.close()
        shutil.rmtree(self._root)

    def close(self) -> None:
        """Let others work there."""
        self._journal.close()


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and line.endswith('\n') else None


def check_free(output: Path) -> None:
    """Refuse to overwrite.

    Raises:
        BagError: there is something.

    """
    if output.exists() or output.is_symlink():
        raise BagError(f'{output} is there already, and not overwritten. Remove what is no longer '
                       'needed, or choose another name with -o.')
