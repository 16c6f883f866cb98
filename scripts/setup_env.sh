# Shared by test.sh and demo.sh, which source it from the project's root.
#
# setup_env FILE...  makes the virtual environment VENV_DIR and installs the requirement files.
#
#   PYTHON          the interpreter that makes it              (default: python3)
#   PADDLE_VERSION  replaces the Paddle version of the files   (default: theirs)
#   VENV_DIR        where it is      (default: .venv, or .venv-PADDLE_VERSION for another version)
#
# A file that is installed already, word for word, is not installed again.

fail() {
  echo "error: $1" >&2
  exit 2
}

setup_env() {
  local pinned python python_version file wanted stamp
  pinned=$(sed -n 's/^paddlepaddle==//p' requirements.txt)
  PADDLE_VERSION=${PADDLE_VERSION:-$pinned}
  [[ $PADDLE_VERSION =~ ^[0-9]+(\.[0-9A-Za-z]+)*$ ]] ||
    fail "PADDLE_VERSION is '$PADDLE_VERSION'; allowed is a version such as $pinned or 2.6.2"
  if [[ -z ${VENV_DIR:-} ]]; then
    VENV_DIR=.venv
    [[ $PADDLE_VERSION == "$pinned" ]] || VENV_DIR=.venv-$PADDLE_VERSION
  fi

  python=${PYTHON:-python3}
  command -v "$python" >/dev/null ||
    fail "there is no '$python'; install Python 3.9 to 3.12, or name it: PYTHON=python3.11"
  python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "'$python' does not run; name another one: PYTHON=python3.11"
  case $python_version in
    3.9 | 3.10 | 3.11 | 3.12) ;;
    *) fail "'$python' is Python $python_version; allowed is 3.9 to 3.12, as in PYTHON=python3.11" ;;
  esac

  # An environment that another Python made, or whose Python is gone, is made again.
  stamp=$VENV_DIR/python-version
  if [[ -e $VENV_DIR ]] && ! { [[ -f $stamp && $(<"$stamp") == "$python_version" ]] &&
    "$VENV_DIR/bin/python" -c '' 2>/dev/null; }; then
    [[ -f $VENV_DIR/pyvenv.cfg || -z $(ls -A "$VENV_DIR") ]] ||
      fail "$VENV_DIR is there and is no virtual environment; move it away, or set VENV_DIR"
    rm -rf "$VENV_DIR"
  fi
  if [[ ! -e $VENV_DIR ]]; then
    echo "setting up $VENV_DIR (Python $python_version, Paddle $PADDLE_VERSION)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "'$python' has no venv module; on Debian and Ubuntu: apt install python$python_version-venv"
    "$python" -m venv "$VENV_DIR" || fail "$VENV_DIR cannot be made, see above"
    echo "$python_version" >"$stamp"
  fi

  for file in "$@"; do
    wanted=$(sed "s/^\(paddlepaddle==\).*/\1$PADDLE_VERSION/" "$file")
    stamp=$VENV_DIR/installed-$file
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && continue
    echo "installing $file into $VENV_DIR"
    echo "$wanted" >"$stamp.tmp"
    "$VENV_DIR/bin/python" -m pip install --quiet --disable-pip-version-check -r "$stamp.tmp" ||
      fail "$file cannot be installed into $VENV_DIR, see above"
    mv "$stamp.tmp" "$stamp"
  done

  # Paddle's launcher dies of --gpus where there is no GPU; see scripts/launch_without_gpu.py.
  local site
  site=$("$VENV_DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp scripts/launch_without_gpu.py "$site/paddleqat_launch.py"
  echo 'import paddleqat_launch' >"$site/paddleqat_launch.pth"
}
