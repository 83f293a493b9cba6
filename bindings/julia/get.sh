#!/bin/bash
# get.sh FOLDER: unpacks Julia 1.5.3 there, without root and without installing anything; FOLDER/julia then runs it.
# It is Debian 11's, the last Debian release with a Julia, taken from the mirror that this machine's apt uses.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ -e "$folder/ready" ] && exit 0

. "$(dirname "$0")/../../packaging/debian.bash"
debs=$folder/debs
rm -rf "$folder/root"
mkdir "$folder/root"
debian_packages bullseye "$debs" --yes --no-install-recommends --download-only install julia

# The machine's own C and C++ run-time libraries are newer than Debian 11's, and serve.
for package in "$debs"/*.deb; do
  case $(basename "$package") in
    libc6_* | libgcc-s1_* | libstdc++6_* | libcrypt1_*) ;;
    *) dpkg-deb -x "$package" "$folder/root" ;;
  esac
done
rm -rf "$debs"

cat >"$folder/julia" <<'END'
#!/bin/bash
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/$(uname -m)-linux-gnu
export LD_LIBRARY_PATH=$libraries/julia:$libraries:$root/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export JULIA_BINDIR=$root/usr/bin
export JULIA_DEPOT_PATH=${JULIA_DEPOT_PATH:-$(dirname "$root")/depot}
exec "$root/usr/bin/julia" "$@"
END
chmod +x "$folder/julia"
"$folder/julia" -e 'print("Julia ", VERSION, "\n")'
touch "$folder/ready"
