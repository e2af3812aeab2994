# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, whoever may read them, and whatever is killed meanwhile."""

from __future__ import annotations

import os

import pytest

from depthclip_ros.core.errors import quoted
from depthclip_ros.core.files import atomic, open_regular, user_path


def test_complete_or_not_at_all(tmp_path):
    target = tmp_path / 'folder' / 'file'
    with atomic(target) as file:
        file.write(b'first')
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), atomic(target) as file:
        file.write(b'second' * (1 // 0))
    assert target.read_bytes() == b'first'
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_readable_as_far_as_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic(tmp_path / 'file'):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / 'file').stat().st_mode & 0o777 == mode


def test_what_a_killed_writer_left_goes_an_hour_later(tmp_path):
    target = tmp_path / 'file'
    left, recent = (tmp_path / f'.file.{name}.part' for name in ('left', 'recent'))
    for path in (left, recent):
        path.write_bytes(b'half')
    os.utime(left, (1e9, 1e9))
    with atomic(target) as file:
        file.write(b'whole')
    assert sorted(tmp_path.iterdir()) == [recent, target]  # which somebody may still write
    assert target.read_bytes() == b'whole'


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'dangling link', 'missing'])
def test_what_is_no_file_is_not_waited_for(tmp_path, make_no_file, kind):
    """Opening a pipe that nobody writes to would never end."""
    make_no_file(tmp_path / 'path', kind)
    with pytest.raises(OSError, match='No such file' if kind in ('dangling link', 'missing')
                       else 'not a file'):
        open_regular(tmp_path / 'path')


def test_a_user_s_path(monkeypatch):
    monkeypatch.setenv('HOME', '/home/robot')
    assert str(user_path('~/weights.pt')) == '/home/robot/weights.pt'
    with pytest.raises(OSError, match='no home folder'):
        user_path('~nobody-of-that-name/x')


def test_a_long_value_is_quoted_in_part():
    assert quoted([1, 2]) == '[1, 2]'
    text = quoted('x' * 1_000_000)
    assert text.endswith('x… (1000000 characters)')
    assert len(text) < 110
    assert quoted(list(range(5000))).endswith('… (5000 items)')
