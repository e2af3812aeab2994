# SPDX-License-Identifier: Apache-2.0
"""Train the demo model: a small CLIP, in OpenAI's architecture, on rendered rooms.

Stage 1 teaches the text encoder where sentences about distance, and about rooms, lie on the unit
sphere. Stage 2 keeps it as it is and aligns the image encoder with it (locked-text tuning): the
dense features `c_proj(v_proj(x))` of every patch with sentences of its depth, a fresh random set
of sentences in every step, and the attention pool's output with the kind of room.

    python tools/train_demo.py --out build/demo                         # from nothing
    python tools/train_demo.py --out build/demo --start WEIGHTS.pt      # from such weights
    python tools/train_demo.py --out /tmp/smoke --smoke     # half a minute, for CI
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import sys
import time
import zipfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import demo_sentences as language  # noqa: E402

from depthclip_ros.core.files import atomic  # noqa: E402
from depthclip_ros.core.openai_clip import import_clip  # noqa: E402
from depthclip_ros.sim import (  # noqa: E402
    KINDS,
    RenderOptions,
    Scene,
    SimCamera,
    render,
    trajectory,
)
from depthclip_ros.sim.lived_in import handheld_pose, lived_in  # noqa: E402

HEIGHT, WIDTH = 192, 256
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own normalisation
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
FIRST_TRAINING_SEED = 1_000_000  # rooms with lower seeds are for evaluation only
TEXT_LENGTH = 20  # tokens that training looks at; the encoder is causal, so the rest is padding


@dataclass(frozen=True)
class Plan:
    """What makes a run what it is."""

    seed: int = 0
    steps: int = 7000
    fresh: int = 8  # frames rendered for each step
    repeated: int = 24  # earlier frames, cut out anew and as another camera shows them
    memory: int = 3000  # how far back those are taken from
    plain: float = 0.25  # share of plain rooms, which the simulator shows; the others are lived in
    easy: int = 1500  # steps in which that share falls from 1, since plain rooms teach the basics
    pictures: int = 0  # 0: every frame is of a new room; else so many frames, again and again
    rate: float = 2.5e-3
    decay: float = 0.02
    average: float = 0.998  # of the exponential moving average of the weights
    sentences: int = 12
    text_steps: int = 700
    text_batch: int = 128
    embed: int = 128
    width: int = 16
    layers: tuple[int, int, int, int] = (1, 2, 3, 2)
    bfloat16: bool = True  # twice as fast where the processor knows it
    # From the weights of the start to those of the end (robust fine-tuning by interpolation of
    # weights, Wortsman et al. 2022, who recommend 0.5).
    interpolation: float = 1.0
    processes: int = 2  # share each batch; batch normalisation sees its own part only
    text_width: int = 64
    text_layers: int = 4


# From trained weights: half of the rooms are plain and the rate is a third, so that what the
# model knows is not forgotten.
FROM_START = Plan(seed=2, steps=3000, plain=0.5, easy=0, rate=8e-4, interpolation=0.5,
                  processes=1)
SMOKE = Plan(steps=24, fresh=4, repeated=2, pictures=10, text_steps=75, text_batch=48,
             layers=(1, 1, 1, 1))


def build(plan: Plan) -> nn.Module:
    """An untrained CLIP of OpenAI's classes."""
    clip = import_clip()
    model: nn.Module = clip.model.CLIP(
        plan.embed, HEIGHT, plan.layers, plan.width, None, 77, 49408, plan.text_width,
        max(1, plan.text_width // 64), plan.text_layers)
    return model


# Stage 1: text ---------------------------------------------------------------------------------

def tokenize(sentences: list[str]) -> Tensor:
    """(N, TEXT_LENGTH) token numbers."""
    tokens: Tensor = import_clip().tokenize(sentences)
    if bool((tokens[:, TEXT_LENGTH:] != 0).any()):
        raise ValueError(f'a training sentence is longer than {TEXT_LENGTH} tokens')
    return tokens[:, :TEXT_LENGTH].long()


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """CLIP's encode_text on the first tokens only: the same numbers, as its mask is causal."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    mask = torch.full((length, length), float('-inf')).triu_(1)
    for block in model.transformer.resblocks:
        y = block.ln_1(x.transpose(0, 1))
        y = block.attn(y, y, y, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
        x = x + y
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_final(x)
    x = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    return F.normalize(x, dim=1)


def text_parameters(model: Any) -> list[nn.Parameter]:
    """What stage 1 trains and stage 2 keeps."""
    return [*model.transformer.parameters(), *model.token_embedding.parameters(),
            *model.ln_final.parameters(), model.positional_embedding, model.text_projection]


def train_text(model: Any, plan: Plan, targets: language.TextTargets, log: Any) -> None:
    """Regress sentences onto their directions; a few words are blanked, as unknown ones are."""
    sentences = language.training_sentences()
    tokens = tokenize([s.text for s in sentences])
    goals = torch.from_numpy(targets.distance(np.array([s.metres for s in sentences])))
    # Half of a batch talks in words, half in numbers, however many of each there are.
    numeric = torch.tensor([any(c.isdigit() for c in s.text) or ' meter' in s.text
                            for s in sentences])
    weight = torch.where(numeric, 0.5 / numeric.sum(), 0.5 / (~numeric).sum())
    room_tokens = tokenize([t for kind in KINDS for t in language.room_sentences(kind)])
    each = len(room_tokens) // len(KINDS)
    room_goals = torch.from_numpy(np.stack([targets.room(i) for i in range(len(KINDS))]))
    used_tokens = torch.cat([tokens, room_tokens]).unique()
    unknown_token = 49405  # any token that no sentence uses stands for all of those
    optimizer = torch.optim.AdamW(text_parameters(model), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, plan.text_steps)
    generator = torch.Generator().manual_seed(plan.seed + 1)
    for step in range(plan.text_steps):
        pick = torch.multinomial(weight, plan.text_batch, generator=generator)
        rooms = torch.randint(len(room_tokens), (plan.text_batch // 8,), generator=generator)
        batch = torch.cat([tokens[pick], room_tokens[rooms]])
        goal = torch.cat([goals[pick], room_goals[rooms // each]])
        blank = torch.rand(batch.shape, generator=generator) < 0.02
        batch = torch.where(blank & (batch > 0) & (batch < 49406), unknown_token, batch)
        features = encode_text(model, batch)
        loss = (1 - (features * goal).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(text_parameters(model), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == plan.text_steps - 1:
            log(stage='text', step=step, loss=round(float(loss.detach()), 5))
    with torch.no_grad():
        embedding = model.token_embedding.weight
        row = embedding[unknown_token].clone()
        keep = torch.zeros(len(embedding), dtype=torch.bool)
        keep[used_tokens] = True
        embedding[~keep] = row
        log(stage='text', **check_text(model, targets))


@torch.no_grad()
def check_text(model: Any, targets: language.TextTargets) -> dict[str, float]:
    """Error of sentences read back as a distance: |log| of the ratio, median and 90 %."""
    grid = np.exp(np.linspace(math.log(0.35), math.log(11), 200))
    curve = torch.from_numpy(targets.distance(grid))
    result = {}
    for name, sentences in (('seen', language.training_sentences()[::7]),
                            ('held_out', language.held_out_sentences())):
        features = torch.cat([encode_text(model, tokenize([s.text for s in sentences[i:i + 500]]))
                              for i in range(0, len(sentences), 500)])
        read = torch.from_numpy(grid)[(features @ curve.T).argmax(dim=1)]
        error = (read.log() - torch.tensor([s.metres for s in sentences]).log()).abs()
        result[f'{name}_median'] = round(float(error.median()), 4)
        result[f'{name}_90'] = round(float(error.quantile(0.9)), 4)
    return result


# Stage 2: images -------------------------------------------------------------------------------

class Frames:
    """Rendered frames by number: any number can be asked for, recent ones are remembered."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.camera = SimCamera().scaled(WIDTH, HEIGHT)
        self.memory: dict[int, tuple[Tensor, Tensor, int]] = {}

    def get(self, number: int) -> tuple[Tensor, Tensor, int]:
        """(3, H, W) in 0..255, (H, W) metres, and the number of the room's kind."""
        if self.plan.pictures:
            number %= self.plan.pictures
        if number not in self.memory:
            self.memory[number] = self._render(number)
            self.memory.pop(number - self.plan.memory - self.plan.fresh, None)
        return self.memory[number]

    def _render(self, number: int) -> tuple[Tensor, Tensor, int]:
        kind = number % len(KINDS)
        seed = FIRST_TRAINING_SEED + 1_000_000_007 * self.plan.seed + number
        scene = Scene.generate(KINDS[kind], seed)
        rng = np.random.default_rng([seed, 31])
        camera = self.camera
        easy = 1 - number / max(1, self.plan.fresh * self.plan.easy)
        if rng.random() < max(self.plan.plain, easy):
            frame = render(scene, camera, trajectory(scene, seed).pose(float(number % 97)))
        else:
            scene = lived_in(scene)
            focal = WIDTH / 2 / math.tan(math.radians(rng.uniform(50, 100)) / 2)
            camera = SimCamera(WIDTH, HEIGHT, focal, focal, camera.cx, camera.cy)
            try:
                pose = handheld_pose(scene, rng)
            except RuntimeError:  # too full for a camera
                pose = trajectory(scene, seed).pose(0.0)
            frame = render(scene, camera, pose, RenderOptions(exposure=rng.uniform(0.5, 1.1)))
        image = torch.from_numpy(frame.rgb).permute(2, 0, 1).contiguous()
        # What a camera of the usual focal length would measure: `reference_focal`'s rule.
        depth = torch.from_numpy(frame.depth) * (self.camera.fx / camera.fx)
        return image, depth, kind


def make_batch(frames: Frames, plan: Plan, step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W) normalised, depth (B, H, W), kinds (B,).

    This process's part; it depends on the seed, the step and the process's rank only.
    """
    rng = np.random.default_rng([plan.seed, step, rank])
    world = plan.processes
    first = step * plan.fresh
    numbers = range(first + rank, first + plan.fresh, world)
    oldest = max(0, first - plan.memory)
    again = rng.integers(oldest // world, max(first // world, 1), plan.repeated // world)
    again = again * world + rank
    batch_frames = [frames.get(n) for n in numbers] + [
        cut_out(frames.get(int(n)), rng) for n in again]
    images = torch.stack([as_photographed(image, rng) for image, _, _ in batch_frames])
    depth = torch.stack([c[1] for c in batch_frames])
    mirrored = torch.from_numpy(rng.random(len(batch_frames)) < 0.5)
    images[mirrored], depth[mirrored] = images[mirrored].flip(3), depth[mirrored].flip(2)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    images = ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
    return images, depth, torch.tensor([c[2] for c in batch_frames])


def cut_out(frame: tuple[Tensor, Tensor, int], rng: np.random.Generator) -> tuple[
        Tensor, Tensor, int]:
    """A part of a frame, enlarged: a longer focal length, so that its depth counts as less."""
    image, depth, kind = frame
    zoom = rng.uniform(1.0, 1.5)
    height, width = round(HEIGHT / zoom), round(WIDTH / zoom)
    top, left = rng.integers(0, HEIGHT - height + 1), rng.integers(0, WIDTH - width + 1)
    window = np.s_[top:top + height, left:left + width]
    image = F.interpolate(image[(None, slice(None), *window)].float(), (HEIGHT, WIDTH),
                          mode='bilinear', align_corners=False)[0].to(torch.uint8)
    depth = F.interpolate(depth[(None, None, *window)], (HEIGHT, WIDTH),
                          mode='nearest-exact')[0, 0]
    return image, depth * (width / WIDTH), kind


def as_photographed(image: Tensor, rng: np.random.Generator) -> Tensor:
    """uint8 (3, H, W) to float 0..1 as some camera gives it.

    Exposure, contrast, white balance, saturation, vignette, blur, noise, JPEG.
    """
    rgb = image.permute(1, 2, 0).numpy().astype(np.float32) / 255
    grey = rgb.mean(axis=2, keepdims=True)
    rgb = grey + rng.uniform(0.3, 1.3) * (rgb - grey)
    if rng.random() < 0.2:
        rgb = rgb[..., rng.permutation(3)]
    # As automatic exposure does, but not always well.
    rgb *= rng.uniform(0.45, 1.2) / max(float(np.quantile(grey[::4, ::4], 0.9)), 0.05)
    rgb *= rng.uniform(0.85, 1.15, 3).astype(np.float32)
    y, x = np.ogrid[-1:1:HEIGHT * 1j, -1:1:WIDTH * 1j]
    rgb *= 1 - rng.uniform(0, 0.4) * (rng.random() < 0.5) * (x * x + y * y)[..., None] / 2
    rgb = np.clip(rgb, 0, 1).astype(np.float32) ** rng.uniform(0.6, 1.5)
    if rng.random() < 0.4:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.8))
    elif rng.random() < 0.2:
        length = int(rng.integers(2, 8))
        rgb = cv2.blur(rgb, (length, 1) if rng.random() < 0.7 else (1, length))
    rgb += rng.uniform(-0.04, 0.06)
    noise = rng.standard_normal(rgb.shape, dtype=np.float32)
    rgb = np.clip(rgb + noise * rng.uniform(0, 0.04) * (rng.random() < 0.7), 0, 1)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        pixels = cv2.imencode('.jpg', (255 * rgb).astype(np.uint8), quality)[1]
        rgb = cv2.imdecode(pixels, cv2.IMREAD_COLOR).astype(np.float32) / 255
    return torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)


def trunk(visual: Any, x: Tensor) -> Tensor:
    """ModifiedResNet.forward without its last line."""
    x = visual.relu1(visual.bn1(visual.conv1(x)))
    x = visual.relu2(visual.bn2(visual.conv2(x)))
    x = visual.relu3(visual.bn3(visual.conv3(x)))
    x = visual.avgpool(x)
    result: Tensor = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    return result


def dense_features(visual: Any, x: Tensor) -> Tensor:
    """(B, C, h, w) unit vectors: MaskCLIP's value path of the attention pool."""
    pool = visual.attnpool
    features = pool.c_proj(pool.v_proj(x.permute(0, 2, 3, 1)))
    return F.normalize(features, dim=3).permute(0, 3, 1, 2)


def pooled_features(visual: Any, x: Tensor) -> Tensor:
    """(B, C) unit vectors: the attention pool, its positions resized to the map."""
    pool = visual.attnpool
    side = round((len(pool.positional_embedding) - 1) ** 0.5)
    positions = pool.positional_embedding
    if x.shape[2:] != (side, side):
        grid = positions[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, x.shape[2:], mode='bicubic', align_corners=False)
        positions = torch.cat([positions[:1], grid.flatten(2)[0].T])
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + positions[:, None]
    out, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, tokens.shape[2], pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, training=True, need_weights=False,
        use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight)
    return F.normalize(out[0], dim=1)


class SentencePool:
    """All training sentences with their features, to draw a set that spans the distances."""

    def __init__(self, model: Any) -> None:
        sentences = sorted(language.training_sentences(), key=lambda s: s.metres)
        # Templates make many; a third of them is as varied and a third of the memory.
        sentences = sentences[::3]
        self.texts = [s.text for s in sentences]
        self.log_metres = np.log([s.metres for s in sentences])
        with torch.no_grad():
            self.features = torch.cat([
                encode_text(model, tokenize(self.texts[i:i + 500]))
                for i in range(0, len(self.texts), 500)])
            self.rooms = [encode_text(model, tokenize(language.room_sentences(kind)))
                          for kind in KINDS]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(K, C) features and (K,) log metres, ascending, one in each of K ranges of distance."""
        edges = np.linspace(math.log(language.LEAST), math.log(language.GREATEST), count + 1)
        log_distances = edges[:-1] + (edges[1] - edges[0]) * rng.uniform(0.15, 0.85, count)
        index = np.searchsorted(self.log_metres, log_distances) + rng.integers(-15, 16, count)
        index = np.sort(np.clip(index, 0, len(self.texts) - 1))
        return self.features[index], torch.from_numpy(self.log_metres[index]).float()

    def draw_rooms(self, rng: np.random.Generator) -> Tensor:
        """(5, C): one sentence for each kind."""
        return torch.stack([f[int(rng.integers(len(f)))] for f in self.rooms])


def soft_target(log_depth: Tensor, log_bins: Tensor) -> Tensor:
    """Share a log depth (B, h, w) between its two neighbouring bins (K,): (B, K, h, w)."""
    upper = torch.bucketize(log_depth, log_bins).clamp(1, len(log_bins) - 1)
    low, high = log_bins[upper - 1], log_bins[upper]
    share = ((log_depth - low) / (high - low).clamp_min(1e-4)).clamp(0, 1)
    target = torch.zeros(*log_depth.shape, len(log_bins))
    target.scatter_(3, (upper - 1)[..., None], (1 - share)[..., None])
    target.scatter_add_(3, upper[..., None], share[..., None])
    return target.permute(0, 3, 1, 2)


class Upsampling:
    """Upsampling `centered`, as config/demo.yaml has it, and what each node of it stands for."""

    def __init__(self, height: int, width: int) -> None:
        count = height * width
        basis = F.interpolate(torch.eye(count).view(count, 1, height, width), (HEIGHT, WIDTH),
                              mode='bilinear', align_corners=False).view(count, -1)
        self.shape = (height, width)
        self.weights = (basis / basis.sum(dim=1, keepdim=True)).T.contiguous()

    def node_means(self, log_depth: Tensor) -> Tensor:
        """(B, H, W) -> (B, h, w): mean under each node's hat function."""
        return (log_depth.flatten(1) @ self.weights).view(-1, *self.shape)


def losses(model: Any, pool: SentencePool, plan: Plan, upsampling: Upsampling, step: int,
           batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """The three terms of the loss."""
    images, depth, kinds = batch
    rng = np.random.default_rng([plan.seed, step, 3])
    count = int(rng.integers(7, plan.sentences + 1))
    text, log_bins = pool.draw(count, rng)
    with torch.autocast('cpu', torch.bfloat16, enabled=plan.bfloat16):
        feature_map = trunk(model.visual, images)
    feature_map = feature_map.float()
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * torch.einsum('bchw,kc->bkhw', dense_features(model.visual, feature_map), text)
    log_depth = depth.clamp(language.LEAST, language.GREATEST).log()
    target = soft_target(upsampling.node_means(log_depth), log_bins)
    words = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    nodes = torch.einsum('bkhw,k->bhw', logits.softmax(dim=1), log_bins.exp())
    full = F.interpolate(nodes[:, None], (HEIGHT, WIDTH), mode='bilinear', align_corners=False)
    metres = (full[:, 0].log() - log_depth).abs().mean()
    # The whole image, or the square of 6 x 6 that CLIP's own preprocessing would cut out.
    window = feature_map if rng.random() < 0.5 else feature_map[:, :, :, 1:7]
    room_logits = scale * pooled_features(model.visual, window) @ pool.draw_rooms(rng).T
    rooms = F.cross_entropy(room_logits, kinds)
    return {'words': words, 'metres': metres, 'rooms': rooms}


def train_images(rank: int, plan: Plan, out: Path) -> None:
    """Train the image encoder; the first process writes demo.pt, the averaged model.

    Each process has one thread and a part of every batch; they meet once a step, to average their
    gradients. On a machine that does other work too, that waits far less than threads do.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{out.resolve()}/rendezvous', rank=rank,
        world_size=plan.processes)
    log = partial(keep, out) if rank == 0 else lambda **_: None
    model: Any = build(plan)
    model.load_state_dict(torch.load(out / 'start.pt', weights_only=True))
    pool = SentencePool(model)
    for parameter in text_parameters(model):
        parameter.requires_grad_(False)
    model.visual.to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, plan.steps, pct_start=0.12)
    average: Any = copy.deepcopy(model)
    frames, upsampling = Frames(plan), Upsampling(HEIGHT // 32, WIDTH // 32)
    checkpoint, first = out / 'checkpoint.pt', 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for part, name in ((model, 'model'), (average, 'average'), (optimizer, 'optimizer'),
                           (schedule, 'schedule')):
            part.load_state_dict(state[name])
        first = state['step']
    start, sums = time.monotonic(), {}
    for step in range(first, plan.steps):
        model.train()
        terms = losses(model, pool, plan, upsampling, step, make_batch(frames, plan, step, rank))
        loss = terms['words'] + 2.0 * terms['metres'] + 0.1 * terms['rooms']
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters, plan.processes)
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        schedule.step()
        update_average(average, model, min(plan.average, (1 + step) / (10 + step)))
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach())
        every = 50 if plan.steps > 200 else 4
        if (step + 1) % every == 0:
            log(stage='images', step=step + 1, seconds=round(time.monotonic() - start, 1),
                scale=round(float(model.logit_scale.detach().exp()), 2),
                **{name: round(value / every, 4) for name, value in sums.items()})
            sums = {}
        if rank == 0 and (step + 1) % 500 == 0:
            with atomic(checkpoint) as file:
                torch.save({'model': model.state_dict(), 'average': average.state_dict(),
                            'optimizer': optimizer.state_dict(),
                            'schedule': schedule.state_dict(), 'step': step + 1}, file)
    if rank == 0:
        model.load_state_dict(torch.load(out / 'start.pt', weights_only=True))
        update_average(average, model, plan.interpolation)
        save_weights(average, out / 'demo.pt')
    torch.distributed.destroy_process_group()


def average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """The mean over all processes, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start:start + gradient.numel()].view(gradient.shape))
        start += gradient.numel()


@torch.no_grad()
def update_average(average: Any, model: Any, keep: float) -> None:
    """Exponential moving average of weights and of batch statistics."""
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - keep)
        else:
            old.copy_(new)


def save_weights(model: nn.Module, path: Path) -> None:
    """A state dict in half precision that `torch.load(weights_only=True)` reads, deflated.

    The vocabulary has 49408 rows, of which all but a few hundred are the same: deflate makes
    nothing of them. torch writes uncompressed archives but reads compressed ones.
    """
    state = {name: (value.half() if value.dtype.is_floating_point else value).contiguous()
             for name, value in model.state_dict().items()}
    raw = io.BytesIO()
    torch.save(state, raw)
    with atomic(path) as file, zipfile.ZipFile(raw) as source, zipfile.ZipFile(
            file, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for entry in source.infolist():
            info = zipfile.ZipInfo(entry.filename)  # no time stamp: the same bytes every time
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, source.read(entry))


def check_file(path: Path) -> None:
    """The written file must build the model in OpenAI's own code."""
    state = torch.load(path, weights_only=True)
    model = import_clip().model.build_model(state).float()
    with torch.no_grad():
        model(torch.zeros(1, 3, HEIGHT, HEIGHT), import_clip().tokenize(['This is 2 meters away']))


def keep(folder: Path, **values: object) -> None:
    """Print what happens, a JSON object a line, and keep it in log.jsonl."""
    line = json.dumps(values)
    print(line, flush=True)
    with (folder / 'log.jsonl').open('a') as file:
        file.write(line + '\n')


def main() -> None:
    """Train, and leave demo.pt, log.jsonl and plan.json in --out."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for weights and log')
    parser.add_argument('--smoke', action='store_true', help='a short form that only has to '
                        'learn something')
    parser.add_argument('--start', type=Path, metavar='WEIGHTS', help='state dict of the same '
                        'widths to go on from; its text encoder stays')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--steps', type=int, help='steps of the image stage')
    parser.add_argument('--width', type=int, help='of the image encoder')
    arguments = parser.parse_args()
    changes = {name: value for name in ('seed', 'steps', 'width')
               if (value := getattr(arguments, name)) is not None}
    start = arguments.start
    plan = replace(SMOKE if arguments.smoke else FROM_START if start else Plan(), **changes)
    torch.manual_seed(plan.seed)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / 'plan.json').write_text(json.dumps(asdict(plan), indent=2) + '\n')

    log = partial(keep, out)
    model = build(plan)
    if start:
        model.load_state_dict(torch.load(start, weights_only=True))  # converts half precision
    else:
        with torch.no_grad():
            model.visual.attnpool.positional_embedding.mul_(0.1)
            model.logit_scale.fill_(math.log(20.0))
        train_text(model, plan, language.TextTargets(plan.embed), log)
    torch.save(model.state_dict(), out / 'start.pt')
    (out / 'rendezvous').unlink(missing_ok=True)
    torch.multiprocessing.spawn(train_images, (plan, out), nprocs=plan.processes)
    check_file(out / 'demo.pt')
    log(stage='done', bytes=(out / 'demo.pt').stat().st_size)


if __name__ == '__main__':
    main()
