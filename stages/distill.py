"""Train students under the fused teacher: `L` on logits, `F` on features, `LF` on both."""

from torch import nn
from tqdm import tqdm

from richkd import params
from richkd.losses import ContrastiveMemory
from richkd.teachers import lookup as cache
from richkd.teachers.lookup import Table
from richkd.train.objective import Objective
from richkd.train.seeds import TrainingData, train_seeds
from richkd.train.terms import FusedContrast, LogitDistillation, fused_logits
from stages import run


def main(variant: str) -> None:
    p = params.load(
        "student", "distill", "fusion.alpha", "fusion.lam", "crd", "views", "runtime",
        "cache.teacher", "cache.clip", "cache.top_k", "clip.prompts", "clip.logit_scale",
    )  # fmt: skip
    data = TrainingData(p.views, p.runtime)
    parts = [part for letter, part in (("L", "logits"), ("F", "features")) if letter in variant]
    prompting = params.to_dict({"prompt_list": p.clip.prompts, "logit_scale": p.clip.logit_scale})
    tables = [
        cache.of("teacher", data.train.views, p.cache.teacher, p.cache.top_k, data.device, parts),
        cache.of(
            "clip", data.train.views, p.cache.clip, p.cache.top_k, data.device, parts, **prompting
        ),
    ]

    def objective(student: nn.Module, teacher: Table, clip: Table) -> Objective:
        terms = {}
        if "L" in variant:
            fused = fused_logits(teacher, clip, p.fusion.alpha)
            term = LogitDistillation(fused, p.distill.temperature)
            terms["kd"] = (p.distill.logit_weight, term)
        if "F" in variant:
            labels, crd = data.train.labels, p.crd
            shared = {"auto": None, "per_sample": False, "shared": True}[crd.negatives]
            memory = ContrastiveMemory(
                len(labels),
                crd.dim,
                crd.num_negatives,
                crd.temperature,
                crd.momentum,
                labels,
                shared,
            )
            banks = 2 * memory.student_bank.nbytes / 1e6
            kind = "shared by a batch" if memory.shared else "of each sample's own"
            tqdm.write(f"CRD: banks of {banks:,.1f} MB on the {data.device.type}, negatives {kind}")
            term = FusedContrast(student.feature_dim, teacher, clip, p.fusion.lam, memory)
            terms["crd"] = (p.distill.feature_weight, term)
        return Objective(p.distill.ce_weight, **terms)

    inputs = [__file__, "cache/teacher/cache.json", "cache/clip/cache.json"]
    train_seeds(variant, data, p.student, p.distill.seeds, objective, p, inputs, tables)


if __name__ == "__main__":
    run(main, "L", "F", "LF", parallel=True)
