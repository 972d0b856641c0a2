"""Train the embedded model from nothing and write it to a folder.

    python -m scripts.train_embedded_model

Seeded, with progress bars. What is done is kept under `--work`; started again, the script goes on
from there and ends with the weights of an uninterrupted run. With `--init-from` the autoencoder and
the text encoders of a finished model are kept and its transformer is trained on; that run needs a
`--work` folder of its own, as states that are there already count as done.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from scripts.embedded.autoencoder import psnr_db, train_autoencoder
from scripts.embedded.flow_training import FlowPhase, PictureFormat, train_phase
from scripts.embedded.latent_store import encode_pictures
from scripts.embedded.model_folder import load_transformer_weights, save_model_folder
from scripts.embedded.picture_store import draw_pictures
from scripts.embedded.recipe import RECIPES, PhaseRecipe, Recipe
from scripts.embedded.text_encoders import TextEncoders, train_text_encoders
from scripts.embedded.tokenizers import train_tokenizers
from scripts.embedded.training_state import load_state

ROOT = Path(__file__).resolve().parent.parent
AUTOENCODER_PX = 256
HELD_OUT_PICTURES = 32


def main() -> None:
    """Train every part that is not done yet and write the model folder."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    recipe: Recipe = RECIPES[arguments.recipe]
    work: Path = arguments.work
    seed, device = arguments.seed, arguments.device
    weights: dict[str, torch.Tensor] | None = None
    if arguments.init_from is None:
        autoencoder = make_autoencoder(recipe, work, seed, device)
        text = make_text_encoders(recipe, work, seed, device)
    else:
        autoencoder, text = load_frozen_parts(arguments.init_from, device)
        weights = load_transformer_weights(arguments.init_from)
    for phase in recipe.phases:
        if arguments.export_only:
            state = load_state(work / f"{phase.name}.pt")
            weights = state["average"] if state else weights
        else:
            flow_phase = make_phase(phase, recipe, autoencoder, work, seed)
            weights = train_phase(
                flow_phase, text, initial=weights, seed=seed, state_folder=work, device=device
            )
    if weights is None:
        raise SystemExit(f"nothing to export: {work} holds no state of a phase yet")
    save_model_folder(
        arguments.output,
        autoencoder=autoencoder.cpu(),
        text=text,
        transformer={name: weight.cpu() for name, weight in weights.items()},
        shift=recipe.shift,
    )
    print(f"wrote {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "models/embedded")
    parser.add_argument("--work", type=Path, default=ROOT / "models_cache/embedded-training")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--init-from", type=Path, help="a model folder to train on from, with a --work of its own"
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write what is trained so far and stop"
    )
    return parser.parse_args()


def make_autoencoder(recipe: Recipe, work: Path, seed: int, device: str) -> AutoencoderKL:
    """Train the autoencoder, or load the finished one."""
    folder = work / "vae"
    if not folder.exists():
        edge = (AUTOENCODER_PX, AUTOENCODER_PX)
        pictures = draw_pictures(recipe.autoencoder_pictures, seed, edge)
        model = train_autoencoder(
            pictures,
            steps=recipe.autoencoder_steps,
            seed=seed,
            state_path=work / "autoencoder.pt",
            device=device,
        )
        count = min(HELD_OUT_PICTURES, recipe.autoencoder_pictures)
        held_out = draw_pictures(count, seed + 1_000_000, edge, quiet=True)
        print(f"autoencoder: {psnr_db(model, held_out.pictures):.2f} dB on held-out pictures")
        model.save_pretrained(folder)
    return _frozen(AutoencoderKL.from_pretrained(folder).to(device))


def make_text_encoders(recipe: Recipe, work: Path, seed: int, device: str) -> TextEncoders:
    """Train tokenizers and text encoders, or load the finished ones."""
    if not (work / "text_encoder_2").exists():
        clip_tokenizer, t5_tokenizer = train_tokenizers(seed, recipe.tokenizer_captions)
        text = train_text_encoders(
            clip_tokenizer,
            t5_tokenizer,
            steps=recipe.text_steps,
            seed=seed,
            state_path=work / "text.pt",
            device=device,
        )
        clip_tokenizer.save_pretrained(work / "tokenizer")
        t5_tokenizer.save_pretrained(work / "tokenizer_2")
        text.clip.save_pretrained(work / "text_encoder")
        text.t5.save_pretrained(work / "text_encoder_2")
    return _load_text(work, device)


def load_frozen_parts(folder: Path, device: str) -> tuple[AutoencoderKL, TextEncoders]:
    """Return the autoencoder and the text encoders of a model folder in float32."""
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return _frozen(autoencoder.to(device)), _load_text(folder, device)


def make_phase(
    phase: PhaseRecipe, recipe: Recipe, autoencoder: AutoencoderKL, work: Path, seed: int
) -> FlowPhase:
    """Draw and encode the pictures of a phase, unless its state says it is finished."""
    formats = []
    state = load_state(work / f"{phase.name}.pt")
    finished = state is not None and state["step"] >= phase.steps
    for pictures in () if finished else phase.sets:
        width, height = pictures.size
        store = encode_pictures(
            autoencoder,
            count=pictures.count,
            seed=seed,
            size=pictures.size,
            path=work / f"latents-{width}x{height}-{pictures.count}.pt",
        )
        formats.append(
            PictureFormat(
                store=store,
                batch_size=pictures.batch_size,
                frame_scale=pictures.frame_scale,
                weight=pictures.weight,
                window=pictures.window,
            )
        )
    return FlowPhase(
        name=phase.name,
        steps=phase.steps,
        formats=tuple(formats),
        learning_rate=phase.learning_rate,
        subject_weight=phase.subject_weight,
        decay_share=phase.decay_share,
        sampler_share=phase.sampler_share,
        straighten_share=phase.straighten_share,
        sigmas=sampler_sigmas(recipe),
        save_every=recipe.save_every,
    )


def sampler_sigmas(recipe: Recipe) -> tuple[float, ...]:
    """Return the noise levels that the pipeline passes through, from 1 to 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=recipe.shift)
    steps = recipe.sampler_steps
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    return tuple(scheduler.sigmas.tolist())


def _load_text(folder: Path, device: str) -> TextEncoders:
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    return TextEncoders(
        clip_tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        t5_tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
        clip=_frozen(clip.to(device)),
        t5=_frozen(t5.to(device)),
    )


def _frozen(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
