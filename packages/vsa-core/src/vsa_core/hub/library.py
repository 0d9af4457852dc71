"""Networks in folders and on the Hugging Face hub: weights as safetensors, their configuration as JSON, and a model card.

A package that has networks makes one `Library` of them (extra `hub` of each package).
"""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Kind = TypeVar("Kind", bound=nn.Module)
WEIGHTS, CARD, CONFIG = "model.safetensors", "README.md", "config.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Library(Generic[Network]):
    """The networks of a package, each made again from its configuration: `type(model)(model.config)`.

    The constructors also run on the meta device, and all that they draw or compute is in the state dict.
    """

    name: str
    """Of the package, as pip knows it."""
    version: str
    """Of the package; config.json holds it, and a refusal names it."""
    models: Mapping[type[Network], Callable[..., Any]]
    """The class of a network's configuration, a dataclass, by the class of the network."""
    card: Callable[[Network, str, Mapping[Any, float] | None, str | None], str]
    """Text of a model card from the network, its name, accuracy and command; ValueError for an accuracy that cannot be."""

    def save(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
    ) -> None:
        """Write model.safetensors, config.json and a model card, README.md, that `load` and the hub read.

        Each file is written beside and renamed. config.json holds a SHA-256 of itself and the weights: should the process die
        between two renames, or a file be changed, the folder is refused instead of loading something else.

        Args:
            model: the network; it stays as it is.
            folder: made where there is none; files of these three names in it are replaced.
            accuracy: share of the test set classified correctly, from 0 to 1, for each number of inputs a pass that was
                measured, as the package counts them; for the card.
            command: what trained the network; for the card.

        Raises:
            TypeError: the model is none of the library's.
            ValueError: a weight is not finite or does not fit the configuration, or an accuracy is out of range.
            ImportError: safetensors is not installed.
            OSError: the folder cannot be written.
        """
        safetensors, folder = self.optional("safetensors.torch"), Path(folder)
        model = self.configured(model)
        config: Any = model.config
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
        }
        settings = {
            "class": type(model).__name__,
            f"{self.name}_version": self.version,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "config": json.loads(json.dumps(asdict(config), default=lambda number: number.item())),  # also NumPy's numbers
        }
        load_strict(self.described(settings), weights)  # what would not load is not written
        data = safetensors.save(weights, metadata={"format": "pt"})
        settings["sha256"] = digest(settings, data)
        contents = {
            WEIGHTS: data,
            CARD: self.card(model, folder.resolve().name, accuracy, command).encode(),
            CONFIG: (json.dumps(settings, indent=2) + "\n").encode(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
            for name, content in contents.items():
                Path(beside, name).write_bytes(content)
            for name in contents:
                os.replace(Path(beside, name), folder / name)

    def load(self, source: str | os.PathLike[str], *, revision: str | None = None, device: str | torch.device = "cpu") -> Network:
        """The network that `save` or `push` wrote, in eval mode, in the dtype that it was saved in.

        Nothing is unpickled, and no weight is left as it was initialised: whatever does not fit exactly is refused.

        Args:
            source: a folder or, where there is none of that name, the id of a repository on the hub, name or user/name.
            revision: a branch, tag or commit of the repository.
            device: where the weights go.

        Raises:
            ValueError: a file is damaged or not of this save, an entry of config.json is unknown, the network is of another
                library, a weight is missing, unknown, of another shape or dtype, or not finite; or a folder is given a revision.
            FileNotFoundError: there is no such folder, or a file is missing from it.
            ImportError: safetensors, or for a repository huggingface_hub, is not installed.
            Exception: what huggingface_hub raises where the repository or its revision cannot be had.
        """
        safetensors, folder = self.optional("safetensors.torch"), self.fetched(source, revision)
        text, data = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        try:
            settings = json.loads(text)
            expected = settings.pop("sha256")
            actual = digest(settings, data)
        except Exception as error:
            raise ValueError(f"{folder / CONFIG} must be JSON as save_pretrained writes it: {error!r}") from error
        if actual != expected:
            raise ValueError(
                f"the SHA-256 of {CONFIG} and {WEIGHTS} in {folder} is {actual}, expected {expected}: "
                "a file was changed or damaged, or they are not of one save"
            )
        try:
            model = self.described(settings)
            load_strict(model, safetensors.load(data))
        except Exception as error:
            writers = [f"{entry.removesuffix('_version')} {settings[entry]}" for entry in settings if entry.endswith("_version")]
            between = f"written by {', '.join(writers) or 'an unknown program'}, read by {self.name} {self.version}"
            raise ValueError(f"{folder} ({between}) holds no network that fits: {error}") from error
        return model.to(device).eval()

    def load_as(
        self,
        kind: type[Kind],
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> Kind:
        """`load` for one class of network.

        Raises:
            ValueError: `source` holds a network of another class, or for the reasons of `load`, which has the other errors too.
        """
        model: nn.Module = self.load(source, revision=revision, device=device)
        if not isinstance(model, kind):
            raise ValueError(f"{source} holds a {type(model).__name__}, expected a {kind.__name__}")
        return model

    def push(
        self,
        model: nn.Module,
        repo_id: str,
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the files of `save` in one commit, to a repository that is made where there is none.

        Args:
            model: the network; it stays as it is.
            repo_id: name or user/name.
            accuracy: as for `save`; for the card.
            command: what trained the network; for the card.
            private: whether a repository that is made here is private; one that is there stays as it is.
            token: of a user who may write there; the one of `hf auth login` unless given.

        Returns:
            Address of the repository.

        Raises:
            TypeError: the model is none of the library's.
            ValueError: a weight is not finite or does not fit the configuration, or an accuracy is out of range.
            ImportError: huggingface_hub or safetensors is not installed.
            Exception: what huggingface_hub raises where the repository cannot be made or written.
        """
        model = self.configured(model)
        api = self.optional("huggingface_hub").HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save(model, folder, accuracy=accuracy, command=command)  # before a repository is made
            repository = api.create_repo(repo_id, private=private, exist_ok=True)
            Path(folder, CARD).write_text(self.card(model, repository.repo_id, accuracy, command), encoding="utf-8")
            message = f"{type(model).__name__}, {self.name} {self.version}"
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
        return str(repository)

    def configured(self, model: nn.Module) -> Network:
        """The model, if it is of a class that can be made again from its configuration; else TypeError."""
        for kind in self.models:
            if type(model) is kind:
                return model
        names = " or a ".join(kind.__name__ for kind in self.models)
        raise TypeError(f"model is a {type(model).__name__}; only a {names} has a configuration to save")

    def described(self, settings: Mapping[str, Any]) -> Network:
        """The network that config.json describes, on the meta device: it holds no memory and draws no random number."""
        kinds = {kind.__name__: kind for kind in self.models}
        for entry, choices in (("class", list(kinds)), ("dtype", list(DTYPES))):
            if settings[entry] not in choices:
                raise ValueError(f"{entry} must be one of {', '.join(choices)}, got {settings[entry]!r}")
        kind = kinds[settings["class"]]
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["config"].items()}
        with torch.device("meta"):
            return kind(self.models[kind](**fields)).to(DTYPES[settings["dtype"]])

    def fetched(self, source: str | os.PathLike[str], revision: str | None) -> Path:
        """The folder, or a copy of the repository's two files in the cache of huggingface_hub."""
        if Path(source).is_dir():
            if revision is not None:
                raise ValueError(f"{source} is a folder, which has no revision; got {revision!r}")
            return Path(source)
        if not isinstance(source, str) or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source):
            raise FileNotFoundError(f"there is no folder {source}, and it is no id of a repository, name or user/name")
        download = self.optional("huggingface_hub").snapshot_download
        try:
            return Path(download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
        except Exception as error:
            error.add_note(f"{source!r} was taken for a repository on the Hugging Face hub, as there is no folder of that name")
            raise

    def optional(self, name: str) -> ModuleType:
        """Import a module of the packages that only this file needs."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"{name.partition('.')[0]} is missing: pip install {self.name}[hub]") from error


def load_strict(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load every entry of a model's state dict, and nothing else; after an error the model is as it was.

    A model on the meta device takes over the tensors themselves, any other copies their values.

    Raises:
        ValueError: a weight is missing, unknown, of another shape or dtype than the model's, or not finite.
    """
    expected = model.state_dict()
    if weights.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise ValueError(f"weights of a {type(model).__name__}: missing {missing}, unknown {unknown}")
    for name, own in expected.items():
        value = weights[name]
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}, expected {tuple(own.shape)} and {own.dtype}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} holds a NaN or infinite number, expected finite ones")
    model.load_state_dict(dict(weights), assign=any(own.is_meta for own in expected.values()))


def digest(settings: Mapping[str, Any], data: bytes) -> str:
    """SHA-256 of what config.json says and of the weights, together."""
    both = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    both.update(data)
    return both.hexdigest()
