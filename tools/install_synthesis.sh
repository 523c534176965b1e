#!/bin/sh
# espeak-ng and npm, which the synthesis of training speech needs: there already, or installed with apt-get where we may.
command -v espeak-ng >/dev/null && command -v npm >/dev/null && exit 0
. "$(dirname "$0")/apt.sh"
apt_install espeak-ng npm && exit 0
echo "espeak-ng or npm is missing: apt-get install espeak-ng npm"
exit 1
