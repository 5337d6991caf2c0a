"""emoji-vlm: transformers' LLaVA (arXiv 2304.08485) of emoji-clip's picture tower, a two-layer projector and SmolLM2.

A picture of 64 x 64 pixels becomes 4 x 4 image tokens, row by row. Shipped as emoji-vlm are the projector, what the
tower has on top of emoji-clip's ResNet, and a change of low rank to SmolLM2's attention; `load` puts them together with
the ResNet and `steer.load("smollm2")` in memory.

The image token is SmolLM2's number 16, reserved and in none of its texts, under another name: its vocabulary stays as
it is. The chat template is SmolLM2's without the system prompt:

    <|im_start|>user
    <image>What is this?<|im_end|>
    <|im_start|>assistant
    a red apple, noto style<|im_end|>
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from steer.zoo import folder, smollm

SIZE, PATCH = 64, 16
TOKENS = (SIZE // PATCH) ** 2
WIDTH, DEEP, HEADS, LAYERS = 32, 192, 6, 2
"""Of emoji-clip's ResNet, of the tower's tokens, and of the attention between them: its heads and layers."""
RANK, CHANGED = 8, ("q_proj", "v_proj")
"""The rank of the change to SmolLM2, and the layers that are changed."""
IMAGE, RESERVED, IMAGE_ID = "<image>", "<empty_output>", 16
ASKED, ANSWERED = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Seeing(NamedTuple):
    """A vision-language model of transformers and its processor."""

    model: Any
    processor: Any


class Low(nn.Module):
    """x -> B A x: a change to a linear layer, of low rank and zero at first (LoRA, arXiv 2106.09685)."""

    def __init__(self, layer: Any, rank: int):
        super().__init__()
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class TowerConfig(PreTrainedConfig):
    """Of `Tower`: `hidden_size` features a token."""

    model_type = "emoji-tower"
    hidden_size: int = DEEP
    image_size: int = SIZE
    patch_size: int = PATCH


class Tower(PreTrainedModel):
    """The picture side of emoji-clip, a ResNet, and a small transformer over its places, as in hybrid ViTs.

    Pixels (b, 3, 64, 64) in [-1, 1] -> (b, TOKENS, DEEP). A place of the grid of 4 x 4 begins with what the ResNet's
    third stage sees there, and its last stage in the cell of 2 x 2 around it. The ResNet is frozen, and in eval mode.
    """

    config_class = TowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TowerConfig):
        from open_clip.modified_resnet import ModifiedResNet

        super().__init__(config)
        resnet: Any = ModifiedResNet((1, 1, 1, 1), 128, WIDTH // 2, SIZE, WIDTH)
        resnet.attnpool = nn.Identity()  # which makes a single vector of a picture
        self.resnet: Any = resnet.requires_grad_(False)
        self.enter = nn.Linear(WIDTH * (16 + 32), DEEP)
        self.place = nn.Parameter(torch.zeros(TOKENS, DEEP))
        shape = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(DEEP, HEADS, 4 * DEEP, **shape)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(DEEP), enable_nested_tensor=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        states = self.encoder(self.enter(self.seen(pixel_values)) + self.place)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))

    def seen(self, pixel_values: Tensor) -> Tensor:
        """What the ResNet makes of them: (b, TOKENS, 1536), each stage's features normalised over its channels."""
        net = self.resnet
        near = net.layer3(net.layer2(net.layer1(net.stem(pixel_values.to(self.dtype)))))
        parts = (near, F.interpolate(net.layer4(near), scale_factor=2.0))
        tokens = [part.flatten(2).mT for part in parts]
        return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in tokens], -1)

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        self.resnet.eval()
        return self


AutoConfig.register(TowerConfig.model_type, TowerConfig, exist_ok=True)
AutoModel.register(TowerConfig, Tower, exist_ok=True)


class Eyes(nn.Module):
    """Tower and projector, under the names that they have in LLaVA: pictures in [0, 1] -> (b, TOKENS, width)."""

    def __init__(self, config: Any):
        super().__init__()
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        self.vision_tower = Tower(config.vision_config)
        self.vision_tower.resnet.load_state_dict(resnet())
        self.multi_modal_projector: Any = LlavaMultiModalProjector(config)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.multi_modal_projector(self.vision_tower(pictures * 2 - 1).last_hidden_state)


def resnet() -> dict[str, Tensor]:
    """The weights of emoji-clip's ResNet, without its pooling."""
    from safetensors.torch import load_file

    found = load_file(folder("emoji-clip") / "open_clip_model.safetensors")
    own = {name.removeprefix("visual."): value.float() for name, value in found.items() if name.startswith("visual.")}
    return {name: value for name, value in own.items() if not name.startswith("attnpool.")}


def config_of(text: Any) -> Any:
    """The LlavaConfig around the config of a language model."""
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=TowerConfig(),
        text_config=copy.deepcopy(text),
        image_token_index=IMAGE_ID,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def load(path: Path, language: smollm.Language | None = None, **kwargs: Any) -> Seeing:
    """LlavaForConditionalGeneration and LlavaProcessor in eval mode, float32 by default; no network is asked.

    The processor takes PIL images and uint8 tensors; to float pictures in [0, 1] it needs `do_rescale=False`.
    kwargs (dtype, device_map, attn_implementation, ...) go to `from_pretrained`; `language`: SmolLM2, else loaded.
    Raises what `smollm.load` does where SmolLM2 is missing, and ValueError for weights that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    language = language or smollm.load()
    try:
        found = load_file(path / "model.safetensors")
        return Seeing(joined(found, language.model, **kwargs), processor_of(language.tokenizer))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(f"the weights in {path} cannot be read: {error}. Reinstall steer.") from error


def joined(found: Mapping[str, Tensor], language: Any, **kwargs: Any) -> Any:
    """The whole model, of what is shipped ("eyes.*", "changes.*"), the ResNet and the language model, which stays.

    Raises RuntimeError and KeyError for weights of other names or shapes.
    """
    from transformers import LlavaForConditionalGeneration

    state = {f"model.language_model.{name}": value for name, value in language.model.state_dict().items()}
    state |= {f"model.vision_tower.resnet.{name}": value for name, value in resnet().items()}
    for name, value in found.items():
        part, _, rest = name.partition(".")
        if part == "eyes":
            state[f"model.{rest}"] = value.float()
        elif rest.endswith(".up.weight"):
            layer = f"model.language_model.{rest.removesuffix('.up.weight').replace('-', '.')}.weight"
            down = found[f"{name.removesuffix('up.weight')}down.weight"]
            state[layer] = state[layer] + value.float() @ down.float()
    options = {"dtype": torch.float32, **kwargs, "output_loading_info": True}
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        None, config=config_of(language.config), state_dict=state, **options
    )
    model, info = loaded
    if wrong := {*info["missing_keys"], *info["unexpected_keys"]} - {"lm_head.weight"}:
        raise RuntimeError(f"missing or unknown: {sorted(wrong)[:4]}")
    model.generation_config = language.generation_config
    return model.eval()


def processor_of(tokenizer: Any) -> Any:
    """The LlavaProcessor around SmolLM2's tokenizer, in which the reserved token is called `IMAGE`."""
    from tokenizers import Tokenizer
    from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

    named = tokenizer.backend_tokenizer.to_str().replace(f'"{RESERVED}"', f'"{IMAGE}"')
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(named), padding_side="left", **tokenizer.special_tokens_map
    )
    words.chat_template = TEMPLATE
    half = [0.5] * 3
    pixels = SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half)
    patches = {"patch_size": PATCH, "vision_feature_select_strategy": "full"}
    return LlavaProcessor(pixels, words, **patches, chat_template=TEMPLATE, image_token=IMAGE)


@torch.no_grad()
def answers(
    seeing: Seeing, pictures: Sequence[Tensor], questions: Sequence[str], tokens: int = 16, rows: int = 32
) -> list[str]:
    """What the model says, greedily and in at most `tokens` tokens, to a question about each picture in [0, 1]."""
    model, processor = seeing
    said = []
    for k in range(0, len(questions), rows):
        texts = [f"{ASKED}{IMAGE}{question}{ANSWERED}" for question in questions[k : k + rows]]
        images = [picture.clamp(0, 1).mul(255).round().byte() for picture in pictures[k : k + rows]]
        given = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.device, model.dtype)
        made = model.generate(**given, max_new_tokens=tokens, do_sample=False)[:, given["input_ids"].shape[1] :]
        said += processor.batch_decode(made, skip_special_tokens=True)
    return said
