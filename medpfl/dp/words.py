"""What ``medpfl-dp --help`` says, and why some noise hides nothing."""

DESCRIPTION = """\
Say what somebody's noise is worth: the true epsilon of all their releases, what was claimed, and
how often any attacker can at most pick the right image among so many candidates."""

EXAMPLES = """\
examples:
  DP-SGD: noise multiplier 3, a fifth of the images a step, 50 steps
    medpfl-dp --noise-multiplier 3 --sample-rate 0.2 --steps 50 --delta 2.0833e-5 --candidates 10

  the noise that epsilon 8 takes over 20 rounds of 5 local steps
    medpfl-dp --target-epsilon 8 --sample-rate 0.01 --rounds 20 --local-steps 5 --delta 1e-5

  a client's whole update clipped to norm 0.5 and sent with noise of standard deviation 1
    medpfl-dp --clipping update --clipping-norm 0.5 --noise-std 1 --rounds 20 --delta 1e-5

  Flower's LocalDpMod(clipping_norm=1, sensitivity=1, epsilon=10, delta=1e-5), 20 rounds
    medpfl-dp --flower-local-dp --clipping-norm 1 --sensitivity 1 --epsilon 10 --delta 1e-5 \\
              --rounds 20

  NVFlare's SVTPrivacy(), as it comes, on a network of a million parameters
    medpfl-dp --nvflare-svt --parameters 1000000

  for scripts
    medpfl-dp --noise-multiplier 1 --steps 1 --delta 1e-5 --json
"""

NOT_CLIPPED = (
    "nothing is clipped: one image can move the update by any amount, so that no finite noise "
    "hides it; clip each example's gradient (--clipping example) or the update (--clipping update)"
)
BATCH_CLIPPED = (
    "the mean over a batch is clipped, not each image's gradient: one image can turn the whole "
    "clipped mean around, so that noise for one image's share of it does not hide the image; clip "
    "each image's gradient (--clipping example), or account for the whole update (--clipping "
    "update)"
)
NO_NOISE = "no noise is added"
NO_SENSITIVITY = "sensitivity 0 makes LocalDpMod add noise of standard deviation 0, which is none"
PERCENTILE_IS_EXACT = (
    "the filter adds no noise: it sends the larger entries of the update, truncated to gamma, as "
    "they are, and an image that changes them changes what is sent; add noise to a clipped update"
)
