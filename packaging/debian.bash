# To be sourced: packages of a Debian release, brought into a folder without root and without installing anything, from the
# mirror that this machine's apt uses.

# debian_packages SUITE FOLDER APT_COMMAND...: FOLDER is emptied, and gets the .deb files.
debian_packages() {
  local suite=$1 folder=$2 mirror
  shift 2
  mirror=$(apt-cache policy | grep -oE 'https?://[^ ]*/debian( |$)' | head -1 | tr -d ' ' || true)
  rm -rf "$folder"
  mkdir -p "$folder/lists/partial" "$folder/partial" "$folder/etc"
  touch "$folder/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $suite main" >"$folder/sources.list"
  local options=(
    -qq -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts="$folder/etc" -o Dir::Etc::PreferencesParts="$folder/etc"
    -o Dir::State="$folder" -o Dir::State::Status="$folder/status" -o Dir::State::Lists="$folder/lists"
    -o Dir::Cache="$folder" -o Dir::Cache::Archives="$folder" -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1
  )
  apt-get "${options[@]}" update
  (cd "$folder" && apt-get "${options[@]}" "$@")
}
