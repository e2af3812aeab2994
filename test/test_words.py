# SPDX-License-Identifier: Apache-2.0
"""`depthclip words`: what words say of pictures, and what must be known before it is believed."""

import re

import numpy as np
import pytest
from untrained import tiny_untrained

from depthclip_ros.cli.main import main
from depthclip_ros.cli.words import _configs
from depthclip_ros.core import DepthConfig
from depthclip_ros.core.errors import ConfigError
from depthclip_ros.report.figures import sample_of

NEAR_TO_FAR = 'very close, close, far, very far'


def run(*arguments):
    return main(['words', *map(str, arguments)])


def rows(text, heading):
    """Cells of the table below a heading on the screen, by their first."""
    below = text.partition(f'\n{heading}\n{"-" * len(heading)}\n')[2].partition('\n---')[0]
    lines = [re.split(r' {2,}', line.strip()) for line in below.splitlines()]
    head, *body = [cells for cells in lines if len(cells) > 1]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}


def test_two_sets_side_by_side(picture, rgb, demo_estimator, tmp_path, capsys):
    """The tables hold what the estimator says, the page all figures that it names."""
    output = tmp_path / 'out'
    assert run(NEAR_TO_FAR, '--against', 'near, far', '--image', picture, '--weights', 'demo',
               '-o', output) == 0
    said = capsys.readouterr().out
    assert 'Warning' not in said
    assert not set(said) & set('\\|#*')  # plain text, no markup
    config = demo_estimator.config.replace(
        tokens=tuple(NEAR_TO_FAR.split(', ')), bins=(0.5, 10 / 3, 37 / 6, 9.0))
    demo_estimator.reconfigure(config)
    prediction = demo_estimator.predict(rgb)
    for word, weight in zip(config.tokens, prediction.weights.mean(axis=(1, 2)), strict=True):
        shown = float(rows(said, 'Words A')[word]['answers'].removesuffix('%'))
        assert shown == pytest.approx(100 * weight, abs=0.051)  # may be rounded to either side
    assert rows(said, 'Words A')['close']['most like'] == 'very close'
    assert set(rows(said, 'Words B')) == {'near', 'far'}
    depth = rows(said, 'Depth')
    assert float(depth['A']['median [m]']) == pytest.approx(
        np.median(prediction.patch_depth), abs=0.0051)
    assert depth['A'] != depth['B']
    assert 'evenly spaced from 0.5 to 9 m' in said
    assert 'Nothing here was measured' in said
    page = (output / 'words.html').read_text(encoding='utf-8')
    drawn = {path.name for path in (output / 'figures').iterdir()}
    assert drawn == {f'{kind}_1_{one}.png' for kind in ('bars', 'maps') for one in 'ab'}
    assert {*re.findall(r'src="figures/(.*?)"', page)} == drawn
    features = demo_estimator.text_features
    assert [f'{cosine:.3f}' for cosine in features[0] @ features.T] == re.findall(
        r'<td [^>]*>(.*?)</td>', page.partition('Cosines of')[2])[:4]
    assert run(NEAR_TO_FAR, '--weights', 'demo', '-o', output) == 1
    assert 'not overwritten' in capsys.readouterr().err


@pytest.mark.parametrize(('words', 'cause', 'other'), [
    ('close,far,close', 'close, close are one word', 'empty'), ('a,,b', 'an empty word', 'twice'),
    ('close,', 'an empty word', 'one word')])
def test_the_one_cause_is_named(words, cause, other, capsys):
    assert run(words, '--weights', 'demo') == 1
    error = capsys.readouterr().err
    assert cause in error
    assert other not in error


def test_words_that_the_model_does_not_know_are_named(picture, capsys):
    assert run('apple, guitar', '--against', 'close, near, apple, far', '--image', picture,
               '--weights', 'demo') == 0
    said = capsys.readouterr().out
    assert "A: this model has never learnt 'apple', 'guitar'." in said
    assert 'A: this model takes all these words for the same' in said
    assert "B: this model has never learnt 'apple'." in said
    for of_a in rows(said, 'Words A').values():  # what is the same shares its patches
        assert of_a['strongest in'] == '50.0%'
    assert 'B: this model takes' not in said
    assert rows(said, 'Depth')['A']['deviation [m]'] == '0.00'


def test_untrained_weights_say_so_everywhere(tiny_weights, picture, tmp_path, capsys, monkeypatch):
    """As `untrained` does, on a smaller network."""
    config = tiny_untrained(monkeypatch, tiny_weights, tmp_path)
    assert run('giant, far', '--bins', '1,3', '--config', config, '--image', picture,
               '-o', tmp_path / 'out') == 0
    out, err = capsys.readouterr()
    for text in (out, err, (tmp_path / 'out/words.html').read_text()):
        assert 'UNTRAINED WEIGHTS' in text
    assert 'Bins: given.' in out


def test_bins():
    """Those given, the settings' where as many, else even ones over the same span; said."""
    base = DepthConfig(tokens=('a', 'b', 'c'), bins=(1.0, 1.5, 4.0))
    three, two = ('x', 'y', 'z'), ('v', 'w')
    assert [(c.bins, o) for c, o in _configs(base, [three], None)] == [
        ((1.0, 1.5, 4.0), "the settings' own")]
    (_, given), (other, even) = _configs(base, [three, two], (2.0, 3.0, 9.0))
    assert given == 'given'
    assert other.bins == (2.0, 9.0)
    assert 'evenly spaced from 2 to 9 m, since 3 bins are given for 2 words' in even
    with pytest.raises(ConfigError, match='2 depths for 3 words'):
        _configs(base, [three], (1.0, 2.0))


def test_an_unreadable_picture_is_reported_and_the_others_count(picture, tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    assert run('near, far', '--image', tmp_path, '--weights', 'demo') == 1
    assert re.search(r'(?s)demo, 1 picture\..*Not read: .*broken\.png', capsys.readouterr().out)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['far'], 'is one word'), (['a, , b'], 'an empty word'), (['a, a'], 'which stands twice'),
    (['far, Far'], 'which stands twice'), (['close，far'], 'commas between them'),
    (['a, b', '--bins', '2,1'], 'must ascend'), (['a, b', '--image', '/no/such'], 'no image')])
def test_what_cannot_be_is_refused(arguments, message, capsys):
    assert run(*arguments, '--weights', 'demo') == 1
    assert message in capsys.readouterr().err


def test_an_answer_shows_what_the_network_sees(demo_estimator):
    """A bright column of a wide image stays where its patch is."""
    wide = np.zeros((60, 200, 3), np.uint8)
    wide[:, 100:] = 255
    answer = sample_of(wide, demo_estimator.predict(wide), demo_estimator.config)
    height, width = answer.rgb.shape[:2]
    assert answer.depth.shape == (height, width)
    middle = answer.rgb[height // 2, :, 0]
    assert (middle[:width // 2 - 1] == 0).all()
    assert (middle[width // 2 + 1:] == 255).all()
    assert width / height == pytest.approx(200 / 60, rel=0.02)
