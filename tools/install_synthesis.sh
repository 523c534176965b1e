#!/bin/sh
# espeak-ng and npm, which the synthesis of training speech needs: there already, or installed with apt-get where we may. npm may be
# there without being Debian's, which would not stand beside it.
missing=
for tool in espeak-ng npm; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
test -z "$missing" && exit 0
. "$(dirname "$0")/apt.sh"
# shellcheck disable=SC2086 -- words are meant
apt_install $missing && exit 0
echo "missing:$missing; run: apt-get install$missing"
exit 1
