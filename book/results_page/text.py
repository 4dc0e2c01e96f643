"""The page's own sentences; what stands in braces comes from the rows."""

TEXT = """# Results

This page is written by `python book/make_results.py` from the rows in `book/results/`, one a run, which hold
the options, the seconds and the versions, and since 27 November 2026 the hardware and the day. All figures are in percent, mean ± standard deviation over the seeds, of
the last epoch; no epoch, weight or threshold was chosen on them. Three decisions of the design, however, were taken with
screw's test figures of seed 0 in view ([which](faithfulness.md)), and RD4AD had no such attention. *Fused* is the recommended form of the fusion. Where
another choice was made with test figures in view, the text says so.

Data: MVTec AD's *screw* {{cite:p}}`bergmann2019mvtec` (320 normal images, reduced to 512 px beforehand) and
*magnetic tile* {{cite:p}}`huang2020surface` (800 normal images train, 152 others and 392 defective ones of five kinds test; of several sizes, each
resized to a square). The set is published without a division: 800 of its 952 normal images were put into `train/good`, the rest beside the defects, with
their masks, as MVTec's folders are laid out; `dskd data` does not fetch it. 15 epochs, batch 16, a tenth of the
normal images held out, noise from ten classes of DTD {{cite:p}}`cimpoi2014describing`. Computed on one core of an
Intel Xeon (Sapphire Rapids) in bf16, November 2026.

:::{{admonition}} What has changed since some of the rows were computed
:class: dropdown
Students trained in bf16 also scored in it then; now a trained detector scores in float32 unless told otherwise. Six of
the embedded benchmark's detectors, judged again in float32 by `dskd evaluate`, changed by at most 0.25 points in image
AUROC, 0.01 in pixel AUROC and 0.08 in AUPRO, 0.05 / 0.004 / 0.01 on average.

Batch norm was settled on the training images in the order of their files; now it is in random order. That matters where
neighbouring files are alike, as on magnetic tile. The demo's figures (README, seed 0), computed both ways, moved by 0.1
points at most.

Half-precision cosine distances are added up in another order. That is rounding, but training makes as much of it as of
another seed. Screw's 15 epochs, run again with the same command, moved: fused with the ResNet-18 by −4.1 / −0.4 / −1.4 points (image
AUROC / pixel AUROC / AUPRO, means over the seeds), its seed 0 alone by −16.1 / −0.7 / −2.8, RD4AD by +2.0 / +0.3 / +1.1. So read ± as the
spread over runs, and take no difference of that size between two rows for more than chance.

On 28 November 2026 half-precision cosine distances got a gradient of their own, which is another rounding once more.

Since the first three changes, but before the last, were computed the rows with DSKD's recommended form and RD4AD after 15 epochs at 128 px, and magnetic tile's
after 60. By the present code, in float32 throughout, are the Gaussian's rows, seeds 3 to 5 of the ablations and the noise on the object; and in bf16 magnetic tile's two rows from a CPU at 256 px. CIFAR-10's 20
epochs ran in the night of the last change, and their rows do not say on which side of it. Older are screw's after 60, the other rows at 256 px (scored in float32, though, and with the random order), those *as in the paper* of the first sections, the ablations in bf16, the embedded benchmark and the
drawing. Where a row's seconds of training are very few, it went on from students that another row had trained.
:::

## Teachers, maps and RD4AD, at 128 px

```bash
RESNET18=resnet18=teacher_resnet18_imagenet.safetensors  # on the whole page
COMMON="--image-sizes 128 --epochs 15 --textures DTD --precision bf16"
dskd sweep SCREW TILES --methods dskd rd4ad --teachers $RESNET18 \\
    $COMMON --out runs/sweep
dskd sweep SCREW TILES --teachers offline $RESNET18 \\
    --variants fusion=paper $COMMON --out runs/sweep
dskd sweep SCREW TILES --teachers offline offline=random \\
    $COMMON --out runs/sweep
```

{tables}

The ResNet-18 file holds only the shortcut of stage 4, which nothing here compares and which DSKD's reverse student
starts from. The random start has the shape of the offline teacher. RD4AD is `dskd_lite.baselines.RD4AD`, written
from its paper, in the same trainer, with the loss per position.

**The teacher.** {gap} The aim was 85 % on average over the two sets, in each of the three.

**RD4AD.** {peer}

**Longer training.** 15 epochs are 270 steps on screw and 675 on magnetic tile. Once more with seeds 0 to 2,
everything else the same, after 60:

```bash
dskd sweep SCREW TILES --methods dskd rd4ad --teachers $RESNET18 \\
    --image-sizes 128 --epochs 60 --textures DTD --precision bf16 \\
    --out runs/longer
```

{longer}

Longer training ranks whole images far better on both sets, with every map. On magnetic tile it costs AUPRO, again of every map.

**256 px and 200 epochs**, the paper's size and length, with the same small teacher:

```bash
dskd sweep SCREW TILES --methods dskd rd4ad --teachers $RESNET18 \\
    --image-sizes 256 --epochs 200 --textures DTD \\
    --workers 6 --threads 2 --out runs/full
```

{full}

On screw the fusion that is trained on noise settles on the manual mix, as after 15 and 60 epochs. RD4AD's maps are a little better there,
with each seed, in both figures. After 15 epochs neither was ahead with all three; after 60 DSKD was in pixel AUROC, by 0.2 points or less, and neither in
AUPRO. On magnetic tile DSKD's run with seed 2 is missing, and the gain in image AUROC over the mix by hand is one
seed's: +15.9 points with seed 0, −2.4 with seed 1. The reverse student of seed 0 ranks whole images almost 20 points worse than that of seed 1, and the
mix by hand follows it down; the fusion, trained on noise alone, does not. With seed 1 the fusion also loses 1.8 points of pixel AUROC to the mix
by hand, wins half a point of AUPRO, and ranks whole images below both students.

## The fusion

{fusion}

{aim}

{paper}

**How the recommended form was chosen.** On another drawing of the embedded benchmark, over five products and seeds 0
to 2, with the offline teacher of that day: from a dozen forms the one whose mean was best in pixel AUROC and
AUPRO while no noise was looked at, the inverse variances. On two screw runs (ResNet-18, seeds 0 and 1) it then failed, 77.6 against
87.9 of the manual mix in AUPRO. That sight of test figures is why the line to the manual mix exists; that the place
on it is found by the paper's noise and loss was again settled on the drawing alone. So the choice looked at drawn defects, and at
those two runs, not at noise and normal images alone. The runs of the other forms were not kept. What the form gives on the drawing:

```bash
dskd data procedural --seed 1 --out DRAWING
dskd sweep DRAWING --teachers offline --image-sizes 128 --epochs 10 \\
    --precision bf16 --out runs/development
```

{development}

**What noise and normal images alone choose.** {forms}

## Ablations

Screw, ResNet-18 on ImageNet. The rows of seeds 0 to 2 are older than those above (see the box at the top). At 128 px seeds 3 to 5 were run
by the present code in fp32, on one core of an AMD EPYC: seed 3 first, 4 and 5 a day later, when the figures of the others were known. Counted in are the recommended setting's
three runs of the first table and its seeds 0 to 2 in fp32, which stand under *Noise on the object*: the same seed in another rounding is another run. In the same rounding it is not:
seed 3 in the recommended setting, computed on both days, came out the same to the last digit, and is counted once. The forward student has neither skip connections nor attention, so it
is the same in the first four variants.

```bash
dskd sweep SCREW --teachers $RESNET18 --image-sizes 128 256 --epochs 15 \\
    --textures DTD --precision bf16 --out runs/ablations --variants "" \\
    no-skip no-attention "no-skip no-attention" loss=flattened
dskd sweep SCREW --teachers $RESNET18 --image-sizes 128 --epochs 15 --seeds 3 \\
    --textures DTD --precision fp32 --out runs/ablations --variants "" \\
    no-skip no-attention "no-skip no-attention" loss=flattened
dskd sweep SCREW --teachers $RESNET18 --image-sizes 128 --epochs 15 --seeds 4 5 \\
    --textures DTD --precision fp32 --out runs/ablations --variants \\
    no-skip no-attention "no-skip no-attention" loss=flattened
```

{ablations}

{ablations_verdict}

At 128 px pixels are found worse without skip connections. Without the gate whole images are ranked clearly better; that pixels are then found a little worse, as
four runs against seven had it on this page until 28 November, has not held. Taking away both shows nothing sure. With the flattened loss whole images are ranked better at 128 px; at
256 px, with three runs a side, they come out worse, which the test does not call significant. At 256 px one cell of 24 stands out, as chance alone would have it: three runs a side tell
nothing. The paper infers from its Tables 4 and 5 (fifteen products, 200 epochs) that both are effective; one product and 15 epochs
can neither confirm nor refute it.

## The embedded benchmark

How hard are the five products that the chapters learn on? Image AUROC for each, mean of seeds 0, 1 and 2, 10 epochs, offline
teacher unless it says otherwise; then the means over the products of image AUROC, pixel AUROC and AUPRO.

```bash
dskd data procedural --out data/procedural
COMMON="--seeds 0 1 2 --image-sizes 128 --epochs 10 --precision bf16"
dskd sweep data/procedural --teachers offline offline=random \\
    $COMMON --out runs/benchmark
dskd sweep data/procedural --teachers offline --methods pixel-statistics \\
    autoencoder gaussian nearest-patches $COMMON --out runs/benchmark
```

{benchmark}

## What came before

On the features of the same ResNet-18 (the first and the last read pixels), mean ± standard deviation over seeds 0, 1
and 2, which decide what is held out and where random methods start:

```bash
dskd sweep SCREW TILES --teachers $RESNET18 --image-sizes 128 --seeds 0 1 2 \\
    --epochs 15 --precision bf16 --out runs/classical --methods \\
    pixel-statistics one-class-svm pca gaussian nearest-patches autoencoder
```

{classical}

*Gaussian* and *patches* follow PaDiM {{cite:p}}`defard2021padim` and PatchCore {{cite:p}}`roth2022towards` in a simpler form and are no reproductions of them: both read
stages 1 to 3 on stage 2's grid, averaged over 3 × 3 positions; *Gaussian* keeps 100 channels, shrinks the covariances after Ledoit and Wolf and adds a hundredth of the mean variance (since then its rows, here and
on the embedded benchmark, were computed again, on one core of an AMD EPYC, 27 November 2026); *patches*
keeps 2000 of 20 000 random patches and takes the map's largest value as the image's score.

A figure under 50 is no slip of the sign, which is tested against scikit-learn: such a detector ranks defective images below the
normal ones.

{classical_verdict}

## Thresholds

What the stored threshold gets right on the test set, after 15 epochs with the ResNet-18: a Gamma distribution fitted to the fused scores of held-out
normal images, 5 % of which it may flag, over the seeds. *Best F1* is an oracle: the best that any threshold could
do, found with the test labels.

{thresholds}

Of magnetic tile's normal pixels far more are flagged than 5 %, but hardly on normal images: of the runs of 60 epochs
`dskd evaluate` says 33.8, 34.9 and 30.3 % of all normal pixels, and 6.9, 6.6 and 6.7 % of those on normal images. A defective tile
looks other than the good ones far beyond its defect. On screw the image thresholds of the runs of 60 epochs, set by 32 held-out images,
flag 9.8, 19.5 and 17.1 % of the good screws, two to four times what was asked for. A threshold that flags few normal images misses many defects where
the scores overlap, as they do on screw.
{extras}
## Not reproduced

The paper's tables: fifteen categories of MVTec AD at 256 px and 200 epochs with wide ResNet-50, and CIFAR-10 with that
teacher and at length. Its ablations, which are means over the categories. On a GPU only screw has been trained at that size and length with three seeds, and with a
ResNet-18.

Others' figures, for orientation only: RD4AD with wide ResNet-50 at 256 px and 200 epochs, image AUROC / pixel
AUROC / PRO in its own per-image form, published mean of 15 categories: 98.5 / 97.8 / 93.9 {{cite:p}}`deng2022reverse`. Of its official code, run again by others at
that size and length (one seed, last epoch), we were told 98.7 / 97.8 / 94.0 as the mean, and 98.9 / 99.6 / 98.5 on screw; with a ResNet-18 our runs above have in that PRO
(`legacy_pro` in the rows) on screw {legacy}.
On CIFAR-10 DSKD's paper {{cite:p}}`hao2024dual` and RD4AD's both report a mean image AUROC of 86.5.
"""

FORM_STUDY = """Students were trained once more, in fp32, with seeds 0, 1 and 3 on screw (that of 3 is among the ablations) and 0 to 2 on magnetic tile. Then
{forms} forms of the fusion got weights from noise over their training images, filled from five classes of DTD. They were judged on
held-out normal images under noise of five kinds: large blobs, specks and faint patches from DTD's other five classes, plain
colours, and pieces of other normal images. The rule that chooses was settled before: the best mean of pixel AUROC and AUPRO over
kinds, seeds and sets. The test images came last, and chose nothing.

```bash
COMMON="--image-sizes 128 --epochs 15 --textures DTD --precision fp32"
dskd sweep SCREW --seeds 0 1 3 --teachers $RESNET18 $COMMON --out runs/forms
dskd sweep TILES --seeds 0 1 2 --teachers $RESNET18 $COMMON --out runs/forms
python book/fusion_forms.py runs/forms/*_s? --textures DTD
```

Image AUROC / pixel AUROC / AUPRO, means over the seeds, the best on noise first; of the forms that are trained, those that saw
the paper's noise or large blobs (the rows hold all). On two cores of an AMD EPYC, 27 November 2026.

{table}

:::{{figure}} figures/fusion_forms.svg
:alt: Two scatter plots, of screw and of magnetic tile, with a mark for each form; to the right is better on noise, up is better on real defects. Furthest right on both lie forms with non-negative trained weights, and most of them lie below the manual mix and the recommended line, which are less far right. Lowest, and to the left, lie free weights on scaled maps, and on magnetic tile all free weights.

Each mark is a form: its mean of pixel AUROC and AUPRO on noise, over the set's own runs, against that on real defects.
:::

The rule chooses {best}. On the test images that is {worth} against the manual mix, in points; the recommended form is
{line}. Over the {forms} forms the ranks on noise and on defects correlate (Spearman) with {agree}. {reached}

So noise tells most of the worst forms, whose weights have both signs, but not which of the others to use: what it likes best loses to the
manual mix, above all in image AUROC. Training longer, on fainter noise, or on maps that are not smoothed yet changes nothing of
that; large blobs bring two forms level with the manual mix on screw, and none on magnetic tile. The plain sum of the scaled maps, which
is trained on nothing, is among the best on the defects of both sets. That was seen on test images, so it is a guess for the next set,
and not a choice.
"""

PAPER_FORM = """*As in the paper* (`--fusion paper`: maps as they are, free weights) goes where the noise pays best, which is
to the first stages. *Recommended* keeps the weights between the manual mix and the maps' inverse variances on held-out
normal images, and trains the place between them; [chapter 6](../notebooks/06_fusion.ipynb) builds both."""

NOISE = """
## Noise on the object

The paper's outlook proposes it: does synthetic noise teach the fusion more if it falls on the screw only? The object is found by its
colour before the border's. The disc stands for a region drawn by hand: the screws lie on it at every
angle. Three more places are controls and know nothing of defects: all but the object; the place of the object *in the photo before*, of
an object's size and shape; and half of the photo, cut through the middle at a random angle. Object, disc, background, other screw's place and
half are 25, 57, 75, 25 and 50 % of a photo, and 100, 40, 0, 43 and 26 % of them is screw. The students of a seed are the same in all rows, so
only the fused map differs. In fp32, each run on one core of an AMD EPYC, 28 November 2026. (The sweep is started in the folder of the masks, so the screws, DTD and the
teacher's file want their full paths.)

```bash
python book/noise_controls.py SCREW --out places && cd places
dskd sweep SCREW --teachers $RESNET18 --image-sizes 128 --epochs 15 --seeds 0 1 2 3 \\
    --textures DTD --precision fp32 --out ../runs/noise-on --variants \\
    noise-on=anywhere noise-on=object noise-on=disc.png \\
    noise-on=background noise-on=other noise-on=half \\
    "fusion=paper noise-on=anywhere" "fusion=paper noise-on=object" \\
    "fusion=paper noise-on=disc.png" "fusion=paper noise-on=background" \\
    "fusion=paper noise-on=other" "fusion=paper noise-on=half"
```

{table}

What each place changes against noise anywhere, in points: the mean of the differences within each seed, ± its standard error. In bold is what a
paired t-test calls significant at 5 %; of 30 cells chance alone would mark one or two.

{changes}

In the recommended form no place of the noise changes anything. In the paper's form noise on the screw does help: whole images are ranked better with each of the four
seeds. But another screw's place helps more, and so does a random half, both with each seed and in each of the three figures. So it does not
help *because* noise falls where defects are. Nor is it the amount of noise: a half is twice as large as the object. What changes are the weights (`fusion_weights` in the rows):
noise that is kept to the object, to another one's place or to a half more than doubles that of the forward student's stage 2 (0.3 to 0.5 before, 1.0 to 1.4 then) and raises that of the
reverse student's; noise on the object also turns stage 3 more strongly against what it sees (forward student −0.8 to −1.0; anywhere −0.5, in the two controls −0.3 to −0.7). What in such noise
brings that about, we have not found out. An earlier version of this section (bf16, seeds 0 to 2, no controls) had the gain on the object, 1.9 to 3.2 points, and left it
open whether the place was the reason.
"""

NOVELTY = """
## One class against all others

{text}
"""

SETS = {
    "digits": (
        "scikit-learn's digits, offline teacher, 20 epochs, seed 0, image AUROC by the map's maximum; each digit in turn "
        "is normal and all test digits are judged (`dskd novelty digits --precision bf16`, and the same with `--no-stem-stride`). "
        "Weights that were learned behind a stem with stride do not suit one without: it is fifteen times the arithmetic, took 2 "
        "to 4 times as long, and is worse, so the stride stays."
    ),
    "cifar10": (
        "CIFAR-10 from a copy re-encoded as JPEG, ResNet-18 on ImageNet as teacher, seed 0 "
        "and procedural noise (`dskd novelty CIFAR10 --teacher resnet18 --teacher-weights FILE --epochs 20 "
        "--batch-size 64 --fusion-epochs 5 --precision bf16`, and the same with `--epochs 3`): 35 minutes of one busy core for 3 "
        "epochs, four hours for 20 (Intel Xeon, Sapphire Rapids, shared with other work; left alone, a class took eleven minutes). Nearly seven times the epochs change the fused map by "
        "less than a point. The paper's 86.5 comes from a wide ResNet-50."
    ),
    "cifar10_part": (
        "The stem at 32 px, on a part of CIFAR-10: the first 1500 training and 300 test images of each class by name, "
        "otherwise as above (the same command, and the same with `--no-stem-stride`). What the digits said holds here."
    ),
}
