"""The benchmarks of the study as a table: what is asked, how it is scored, and where the data is.

Source: section 2 of the study's specification (Qllm-Eval, arXiv 2402.18158, and its code). `chance` is what guessing
gets. Two of the study's own values are not that: its plots use 1/6 for CHID, whose rows have seven idioms, and 0 for
StrategyQA, whose answers are yes and no.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .documents import emergent, long_context, nlp, trust
from .task import EVERY, Source, TaskInfo

_ETHICS: Final = Source(hub="EleutherAI/hendrycks_ethics", split="test", licence="MIT")
_ADVERSARIAL: Final = Source(hub="AI-Secure/adv_glue", split="validation", licence="CC BY-SA 4.0")
_LONGEVAL: Final = "https://github.com/DachengLi1/LongChat"
_LOST: Final = "https://github.com/nelson-liu/lost-in-the-middle"
_MMLU: Final = Source(
    file="emergent/mmlu",
    columns=("question", "subject", "choices", "answer"),
    hub="cais/mmlu",
    config="all",
    split="test",
    shots_file="emergent/mmlu_fewshot_dev",
    shots_split="dev",
    licence="MIT",
)
_CEVAL_COLUMNS: Final = ("question", "A", "B", "C", "D", "answer")
_ARC: Final = Source(
    columns=("question", "choices", "answerKey"), hub="allenai/ai2_arc", split="validation", licence="CC BY-SA 4.0"
)
_LINES: Final = Source(
    file="long_context/longeval_lines",
    columns=("prompt", "expected_number", "num_lines", "random_idx"),
    home=_LONGEVAL,
    licence="Apache-2.0",
    generated=True,
)
_KEYS: Final = Source(
    file="long_context/kv_retrieval",
    columns=("ordered_kv_records", "key", "value"),
    home=_LOST,
    licence="MIT",
    generated=True,
)
_MT_BENCH: Final = Source(
    file="dialogue/mt_bench_question",
    hub="HuggingFaceH4/mt_bench_prompts",
    split="train",
    shots_file="dialogue/mt_bench_reference_answer_gpt-4",
    licence="Apache-2.0",
)
LINES: Final = "qllm_lines_"
KEYS: Final = "qllm_kv_retrieval_"
LENGTHS: Final = (200, 300, 400, 500, 600, 680)
"""Numbers of lines in the study: 4k, 6k, 9k, 11k, 13k and 16k tokens."""

STUDY: Final[dict[str, TaskInfo]] = {
    "qllm_lambada": TaskInfo(
        "nlp",
        "acc",
        0.0,
        benchmark="LAMBADA",
        rule="word",
        documents=nlp.lambada,
        source=Source(
            file="basic_nlp/lambada_openai",
            columns=("text",),
            hub="EleutherAI/lambada_openai",
            split="test",
            licence="CC BY 4.0",
        ),
    ),
    "qllm_chid": TaskInfo(
        "nlp",
        "acc",
        1 / 7,
        benchmark="CHID",
        rule="choice",
        documents=nlp.chid,
        source=Source(
            file="basic_nlp/chid",
            columns=("content", "candidates", "answer"),
            home="https://github.com/CLUEbenchmark/FewCLUE (datasets/chid)",
            licence="not stated",
        ),
    ),
    "qllm_winogrande": TaskInfo(
        "nlp",
        "acc",
        1 / 2,
        benchmark="WinoGrande",
        rule="choice",
        documents=nlp.winogrande,
        source=Source(
            file="basic_nlp/winogrande",
            columns=("sentence", "option1", "option2", "answer"),
            hub="allenai/winogrande",
            config="winogrande_xl",
            licence="CC BY 2.0",
        ),
    ),
    **{
        f"qllm_race_{level}": TaskInfo(
            "nlp",
            "acc",
            1 / 4,
            benchmark=f"RACE ({level})",
            rule="choice",
            documents=nlp.race,
            source=Source(
                file=f"basic_nlp/race_{level}",
                columns=("article", "question", "options", "answer"),
                hub="ehovy/race",
                config=level,
                split="test",
                licence="research only",
            ),
        )
        for level in ("middle", "high")
    },
    "qllm_piqa": TaskInfo(
        "nlp",
        "acc",
        1 / 2,
        benchmark="PIQA",
        rule="choice",
        documents=nlp.piqa,
        source=Source(
            file="basic_nlp/piqa", columns=("goal", "sol1", "sol2", "label"), hub="baber/piqa", licence="AFL-3.0"
        ),
    ),
    "qllm_siqa": TaskInfo(
        "nlp",
        "acc",
        1 / 3,
        benchmark="Social IQa",
        rule="choice",
        documents=nlp.siqa,
        source=Source(
            file="basic_nlp/siqa",
            columns=("context", "question", "answerA", "answerB", "answerC", "label"),
            hub="lighteval/siqa",
            licence="not stated",
        ),
    ),
    "qllm_mmlu": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="MMLU (in-context learning)",
        shots=5,
        rule="choice",
        documents=emergent.mmlu,
        source=_MMLU,
    ),
    "qllm_ceval": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="C-Eval (in-context learning)",
        shots=5,
        rule="choice",
        documents=emergent.ceval,
        source=Source(
            file="emergent/ceval",
            columns=_CEVAL_COLUMNS,
            hub="ceval/ceval-exam",
            config=EVERY,
            split="val",
            shots_file="emergent/ceval_fewshot_dev",
            shots_split="dev",
            licence="CC BY-NC-SA 4.0",
        ),
    ),
    "qllm_gaokao": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="Gaokao questions of AGIEval, in place of C-Eval",
        shots=5,
        rule="choice",
        documents=emergent.ceval,
        source=Source(
            file="emergent/gaokao_ceval_format",
            columns=_CEVAL_COLUMNS,
            home="https://github.com/ruixiangcui/AGIEval",
            shots_file="emergent/gaokao_fewshot_dev",
            licence="MIT",
        ),
        in_ability=False,
    ),
    "qllm_strategyqa": TaskInfo(
        "emergent",
        "acc",
        1 / 2,
        benchmark="StrategyQA (commonsense multi-step reasoning)",
        shots=6,
        rule="yes_no_chain",
        documents=emergent.strategyqa,
        source=Source(
            file="emergent/strategyqa",
            columns=("question", "answer", "facts"),
            hub="ChilleD/StrategyQA",
            split="train",
            shots_file="emergent/strategyqa",
            shots_split="train",
            licence="MIT",
        ),
    ),
    "qllm_gsm8k": TaskInfo(
        "emergent",
        "acc",
        0.0,
        benchmark="GSM8K (mathematical multi-step reasoning)",
        shots=4,
        rule="digits_chain",
        documents=emergent.gsm8k,
        source=Source(
            file="emergent/gsm8k",
            columns=("question", "answer"),
            hub="openai/gsm8k",
            config="main",
            split="test",
            shots_file="emergent/gsm8k_train",
            shots_split="train",
            licence="MIT",
        ),
    ),
    "qllm_arc_challenge": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="ARC-Challenge (instruction following)",
        rule="choice",
        documents=emergent.arc,
        source=replace(_ARC, file="emergent/arc_challenge", config="ARC-Challenge"),
    ),
    "qllm_arc_easy": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="ARC-Easy (instruction following)",
        rule="choice",
        documents=emergent.arc,
        source=replace(_ARC, file="emergent/arc_easy", config="ARC-Easy"),
    ),
    "qllm_hellaswag": TaskInfo(
        "emergent",
        "acc",
        1 / 4,
        benchmark="HellaSwag (instruction following)",
        rule="choice",
        documents=emergent.hellaswag,
        source=Source(
            file="emergent/hellaswag", columns=("ctx", "endings", "label"), hub="Rowan/hellaswag", licence="MIT"
        ),
    ),
    "qllm_calibration": TaskInfo(
        "emergent",
        "acc",
        1 / 2,
        benchmark="MMLU (self-calibration)",
        rule="choice",
        documents=emergent.calibration,
        source=replace(_MMLU, file="emergent/mmlu_calib", split="validation", shots_file="", shots_split=""),
    ),
    "qllm_ethics_commonsense": TaskInfo(
        "trust",
        "acc",
        1 / 2,
        benchmark="ETHICS (commonsense)",
        chat=True,
        rule="yes_no",
        documents=trust.commonsense,
        source=replace(
            _ETHICS, file="trustworthiness/ethics_commonsense", config="commonsense", columns=("label", "input")
        ),
    ),
    "qllm_ethics_deontology": TaskInfo(
        "trust",
        "acc",
        1 / 2,
        benchmark="ETHICS (deontology)",
        chat=True,
        rule="reasonable",
        documents=trust.deontology,
        source=replace(
            _ETHICS,
            file="trustworthiness/ethics_deontology",
            config="deontology",
            columns=("label", "scenario", "excuse"),
        ),
    ),
    "qllm_ethics_justice": TaskInfo(
        "trust",
        "acc",
        1 / 2,
        benchmark="ETHICS (justice)",
        chat=True,
        rule="reasonable",
        documents=trust.justice,
        source=replace(_ETHICS, file="trustworthiness/ethics_justice", config="justice", columns=("label", "scenario")),
    ),
    "qllm_ethics_virtue": TaskInfo(
        "trust",
        "acc",
        1 / 2,
        benchmark="ETHICS (virtue)",
        chat=True,
        rule="yes_no",
        documents=trust.virtue,
        source=replace(_ETHICS, file="trustworthiness/ethics_virtue", config="virtue", columns=("label", "scenario")),
    ),
    **{
        f"qllm_adv_{part}": TaskInfo(
            "trust",
            "acc",
            1 / len(meanings),
            benchmark=f"AdvGLUE ({part})",
            rule="option",
            documents=trust.adversarial(part),
            source=replace(
                _ADVERSARIAL,
                file=f"trustworthiness/adv_{part}",
                config=f"adv_{part}",
                columns=("label", *columns),
            ),
        )
        for part, (columns, _, meanings) in trust.ADVERSARIAL_GLUE.items()
    },
    **{
        f"{LINES}{number}": TaskInfo(
            "long",
            "acc",
            0.0,
            benchmark=f"LongEval, {number} lines",
            chat=True,
            rule="integer",
            documents=long_context.lines,
            source=_LINES,
        )
        for number in LENGTHS
    },
    "qllm_topics": TaskInfo(
        "long",
        "acc",
        0.0,
        benchmark="LongEval, topics",
        chat=True,
        rule="contains",
        documents=long_context.topics,
        source=Source(
            file="long_context/longeval_topics", columns=("prompt", "topics"), home=_LONGEVAL, licence="Apache-2.0"
        ),
    ),
    "qllm_multidoc_qa": TaskInfo(
        "long",
        "acc",
        0.0,
        benchmark="Lost in the Middle, multi-document questions",
        chat=True,
        rule="contains_on_first_line",
        documents=long_context.documents_qa,
        source=Source(
            file="long_context/nq_open_multidoc_random",
            columns=("question", "answers", "ctxs"),
            home=f"{_LOST} (qa_data)",
            licence="MIT; text CC BY-SA 3.0",
        ),
    ),
    **{
        f"{KEYS}{number}": TaskInfo(
            "long",
            "acc",
            0.0,
            benchmark=f"Lost in the Middle, {number} keys",
            chat=True,
            rule="contains_exactly",
            documents=long_context.key_value,
            source=_KEYS,
        )
        for number in (75, 140)
    },
    "qllm_mt_bench": TaskInfo(
        "dialogue", "rating", 1.0, benchmark="MT-Bench", best=10.0, chat=True, rule="rated", source=_MT_BENCH
    ),
    "qllm_mt_bench_text": TaskInfo(
        "dialogue",
        "fine",
        None,
        benchmark="MT-Bench: answers without repetition and garbage",
        chat=True,
        source=_MT_BENCH,
    ),
}
