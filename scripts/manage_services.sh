#!/usr/bin/env bash
# Puts the services into systemd and looks after them there; --help says how.
set -euo pipefail

ACCOUNT=flux-api

EXIT_USAGE=2 EXIT_INACTIVE=3 EXIT_NO_SYSTEMD=69 EXIT_NO_RIGHT=77 EXIT_NOT_READY=78

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    checkout=$PWD
    name_services
    verb=${1-}
    if (($#)); then shift; fi
    read_options "$@"
    case $verb in
        install | uninstall | start | stop | restart | status | logs) ;;
        -h | --help | help) usage && return ;;
        '') usage >&2 && exit "$EXIT_USAGE" ;;
        *) wrong "there is no '$verb'" ;;
    esac
    if ((asks_help)); then usage && return; fi
    set_places
    require_systemd
    "do_$verb"
}

# A service for each start script of a precision. `usual` is what install puts in when none is named: the fleet
# runs the same services once more, on the same GPUs.
name_services() {
    local script services=()
    for script in start_*_api.sh; do
        script=${script#start_}
        services+=("flux-${script%_api.sh}")
    done
    known=(flux-cleanup "${services[@]}" flux-fleet flux-page)
    usual=(flux-cleanup "${services[@]}" flux-page)
}

usage() {
    cat <<EOF
Usage: scripts/manage_services.sh VERB [NAME...] [options]

  install     put units in and have them started with the machine; again: bring them up to date
  uninstall   stop them and take the units out; pictures, LoRAs, models, settings and the account stay
  start, stop, restart
  status      what runs (exit status 0: all that is installed, 3: not all, 4: nothing is installed)
  logs        what they said; -f goes on, -n N begins N lines before the end

  NAME        ${known[*]}, or all. Without one: what is installed,
              and for install all but flux-fleet, which draws on the same GPUs as the others

  --user            in the user's own systemd, without root; pictures and LoRAs stay in this folder
  --account NAME    install: run as this account, with the pictures, LoRAs and models that are in this folder
                    (default: flux-api, which is made and has folders of its own)
  --root DIR        install, uninstall: below DIR in place of /, for an image of a machine
  --dry-run         say what would be done
EOF
}

read_options() {
    names=() account='' root='' is_user=0 is_dry=0 asks_help=0 journal=()
    while (($#)); do
        local flag=$1 value=''
        shift
        case $flag in
            --account=* | --root=* | --lines=*) value=${flag#*=} flag=${flag%%=*} ;;
            --account | --root | -n | --lines)
                (($#)) || wrong "$flag needs a value"
                value=$1
                shift
                ;;
        esac
        case $flag in
            --user) is_user=1 ;;
            --dry-run) is_dry=1 ;;
            -h | --help) asks_help=1 ;;
            -f | --follow) journal+=(--follow) ;;
            -n | --lines)
                [[ $value =~ ^[0-9]+$ ]] || wrong "$flag takes a number of lines, not '$value'"
                journal+=(--lines "$value")
                ;;
            --account)
                [[ $value =~ ^[a-z_][a-z0-9_-]*$ ]] || wrong "$flag takes the name of an account, not '$value'"
                account=$value
                ;;
            --root)
                [[ -d $value ]] || wrong "$flag takes a folder that is there, not '$value'"
                root=$(cd "$value" && pwd)
                ;;
            -*) wrong "unknown option '$flag'" ;;
            all) names+=("${known[@]}") ;;
            *)
                [[ " ${known[*]} " == *" $flag "* ]] || wrong "there is no service '$flag'; there is: ${known[*]}, all"
                names+=("$flag")
                ;;
        esac
    done
    if ((is_user)) && [[ -n $account$root ]]; then wrong "--user goes with neither --account nor --root"; fi
    if [[ -n $root && ! $verb =~ ^(un)?install$ ]]; then wrong "--root goes with install and uninstall"; fi
    if [[ -n $account && $verb != install ]]; then wrong "--account goes with install"; fi
    if ((${#journal[@]})) && [[ $verb != logs ]]; then wrong "-f and -n go with logs"; fi
}

# Where units and settings go, and how systemd is asked.
set_places() {
    if ((is_user)); then
        local config=${XDG_CONFIG_HOME:-$HOME/.config}
        units=$config/systemd/user settings=$config/flux-api target=default.target
        ctl=(systemctl --user) is_user_flag=' --user'
    else
        units=$root/etc/systemd/system settings=/etc/flux-api target=multi-user.target
        ctl=(systemctl) is_user_flag=''
        if [[ -n $root ]]; then ctl+=("--root=$root"); fi
    fi
}

require_systemd() {
    if ! command -v systemctl > /dev/null; then
        die "$EXIT_NO_SYSTEMD" "this machine has no systemd; ./start.sh runs everything without it"
    fi
    [[ -z $root ]] || return 0
    local state
    state=$("${ctl[@]}" is-system-running 2> /dev/null) || true
    case $state in
        '' | offline | unknown) ;;
        *) return 0 ;;
    esac
    if ((is_user)); then
        die "$EXIT_NO_SYSTEMD" "there is no systemd for this user: log in as the user itself (not by su or sudo), or have root run 'loginctl enable-linger $(id -un)'"
    fi
    die "$EXIT_NO_SYSTEMD" "systemd does not run this machine (a container?); ./start.sh runs everything without it"
}

# The verbs

do_install() {
    if ((!${#names[@]})); then names=("${usual[@]}"); fi
    if ((!is_user)); then require_root; fi
    require_ready_checkout
    if ((!is_user)); then
        choose_account
        require_readable
        if [[ $account == "$ACCOUNT" ]]; then
            put sysusers.conf "$root/etc/sysusers.d/flux-api.conf"
            run systemd-sysusers ${root:+"--root=$root"} "$root/etc/sysusers.d/flux-api.conf"
        fi
        put tmpfiles.conf "$root/etc/tmpfiles.d/flux-api.conf"
        run systemd-tmpfiles --create ${root:+"--root=$root"} "$root/etc/tmpfiles.d/flux-api.conf"
    fi
    local name file seen=' '
    for name in "${names[@]}"; do
        for file in $(files_of "$name"); do
            [[ $seen != *" $file "* ]] || continue
            seen+="$file "
            put "$file" "$units/$file"
        done
    done
    put_settings services
    for name in "${names[@]}"; do
        [[ $name == flux-cleanup ]] || put_settings "${name#flux-}" # it has those of all services
    done
    reload
    local enabled=()
    for name in "${names[@]}"; do enabled+=("$(unit_of "$name")"); done
    run "${ctl[@]}" enable "${enabled[@]}"
    if ((is_dry)); then return; fi
    echo
    echo "Installed: ${names[*]}. Settings: $root$settings/*.env"
    if ((is_user)); then
        echo "They end with your last login unless root runs once: loginctl enable-linger $(id -un)"
    elif is_own_account; then
        echo "They run as $account and write below /var/lib/flux-api, /var/cache/flux-api and /var/log/flux-api."
        if compgen -G 'data/*.sqlite3' > /dev/null; then
            echo "Pictures and jobs that are in $checkout stay there, and none of these services sees them. To go on with those: install --account $(stat -c %U .)"
        fi
    else
        echo "They run as $account and go on with what is in $checkout."
    fi
    if [[ -z $root ]]; then
        echo "Start them, or after an upgrade: scripts/manage_services.sh restart${is_user_flag}"
    fi
}

do_uninstall() {
    local all=0
    if ((!${#names[@]})); then all=1 names=("${known[@]}"); fi
    if ((!is_user)); then require_root; fi
    local name file found=()
    for name in "${names[@]}"; do
        if is_installed "$name"; then found+=("$name"); fi
    done
    if ((${#found[@]})); then
        local units_of=()
        for name in "${found[@]}"; do units_of+=("$(unit_of "$name")"); done
        if [[ -z $root ]]; then
            run "${ctl[@]}" disable --now "${units_of[@]}"
        else
            run "${ctl[@]}" disable "${units_of[@]}"
        fi
    fi
    local kept=' '
    for name in "${known[@]}"; do
        if [[ " ${names[*]} " != *" $name "* ]] && is_installed "$name"; then kept+="$(files_of "$name") "; fi
    done
    for name in "${names[@]}"; do
        for file in $(files_of "$name"); do
            if [[ $kept != *" $file "* ]]; then take "$units/$file"; fi
        done
    done
    if ((!is_user)) && [[ $kept == ' ' ]]; then
        take "$root/etc/tmpfiles.d/flux-api.conf"
        take "$root/etc/sysusers.d/flux-api.conf"
    fi
    reload
    if ((is_dry)); then return; fi
    if ((!${#found[@]})); then
        if ((all)); then echo "Nothing was installed."; else echo "Not installed: ${names[*]}"; fi
        return
    fi
    echo "Taken out: ${found[*]}. Settings ($root$settings) and data stay."
}

do_start() { control start; }
do_stop() { control stop; }
do_restart() { control restart; }

do_status() {
    choose_installed || die 4 "nothing is installed; scripts/manage_services.sh install$is_user_flag does it"
    local name status=0
    for name in "${names[@]}"; do show_status "$name" || status=$EXIT_INACTIVE; done
    if ((status)); then echo "manage_services.sh: not all of them run; scripts/manage_services.sh logs$is_user_flag says why" >&2; fi
    exit "$status"
}

do_logs() {
    choose_installed || die 4 "nothing is installed; scripts/manage_services.sh install$is_user_flag does it"
    command -v journalctl > /dev/null || die "$EXIT_NO_SYSTEMD" "there is no journalctl; scripts/manage_logs.sh follow shows the services' own logs"
    local name args=() flag=--unit
    if ((is_user)); then flag=--user-unit; fi
    for name in "${names[@]}"; do
        args+=("$flag" "$(unit_of "$name")")
        if [[ $name == flux-cleanup ]]; then args+=("$flag" flux-cleanup.service); fi
    done
    ((${#journal[@]})) || journal=(--lines 100)
    exec journalctl --no-pager --output short-iso "${args[@]}" "${journal[@]}"
}

# Parts

control() {
    choose_installed || die 4 "nothing is installed; scripts/manage_services.sh install$is_user_flag does it"
    local name units_of=()
    for name in "${names[@]}"; do units_of+=("$(unit_of "$name")"); done
    if ! run "${ctl[@]}" "$1" "${units_of[@]}"; then
        die 1 "not all of ${names[*]} could be made to $1; scripts/manage_services.sh logs$is_user_flag says why"
    fi
    if ((!is_dry)); then echo "$1: ${names[*]}"; fi
}

unit_of() {
    case $1 in
        flux-cleanup) echo flux-cleanup.timer ;;
        flux-fleet | flux-page) echo "$1.service" ;;
        *) echo "flux-api@${1#flux-}.service" ;;
    esac
}

files_of() {
    local gpu=''
    if ((!is_user)); then gpu=flux-gpu.service; fi
    case $1 in
        flux-cleanup) echo flux-cleanup.service flux-cleanup.timer ;;
        flux-fleet) echo flux-fleet.service $gpu ;;
        flux-page) echo flux-page.service ;;
        *) echo flux-api@.service $gpu ;;
    esac
}

is_installed() {
    "${ctl[@]}" --quiet is-enabled "$(unit_of "$1")" 2> /dev/null
}

# Names that were given must be installed; without any they are those that are. False when there are none.
choose_installed() {
    local name asked=("${names[@]}")
    names=()
    for name in "${asked[@]:-${known[@]}}"; do
        if is_installed "$name"; then
            names+=("$name")
        elif ((${#asked[@]})); then
            die 4 "$name is not installed; scripts/manage_services.sh install $name$is_user_flag does it"
        fi
    done
    ((${#names[@]})) || return 1
}

show_status() {
    local unit key value
    unit=$(unit_of "$1")
    local -A is=()
    while IFS='=' read -r key value; do is[$key]=$value; done < <(
        "${ctl[@]}" show "$unit" --property=ActiveState,SubState,MainPID,MemoryCurrent,NRestarts,ActiveEnterTimestamp,NextElapseUSecRealtime
    )
    local line="${is[ActiveState]-unknown} (${is[SubState]-?})"
    if [[ -n ${is[ActiveEnterTimestamp]-} ]]; then line+=" since ${is[ActiveEnterTimestamp]}"; fi
    if [[ ${is[MainPID]:-0} != 0 ]]; then line+=", pid ${is[MainPID]}"; fi
    if [[ ${is[MemoryCurrent]-} =~ ^[0-9]{1,18}$ ]]; then line+=", $((is[MemoryCurrent] >> 20)) MiB"; fi
    if [[ ${is[NRestarts]:-0} != 0 ]]; then line+=", restarted ${is[NRestarts]} times"; fi
    if [[ -n ${is[NextElapseUSecRealtime]-} ]]; then line+=", next at ${is[NextElapseUSecRealtime]}"; fi
    printf '%-13s %s\n' "$1" "$line"
    [[ ${is[ActiveState]-} == active ]]
}

require_root() {
    [[ -z $root ]] || return 0
    (($(id -u) == 0)) || ((is_dry)) || die "$EXIT_NO_RIGHT" "$verb needs root: sudo scripts/manage_services.sh $verb ${names[*]}, or --user for your own systemd"
}

require_ready_checkout() {
    [[ $checkout =~ ^[A-Za-z0-9/._@+-]+$ ]] || die "$EXIT_NOT_READY" "units cannot name '$checkout': move the checkout to a path of letters, digits and . _ @ + -"
    # They would be read as something else, and the settings then not at all.
    local others='[][#%&*?$\\"]|[[:cntrl:]]'
    if [[ $settings != /* || $settings =~ $others ]]; then
        die "$EXIT_NOT_READY" "units cannot name '$settings': let XDG_CONFIG_HOME be a whole path without # % & * ? \$ \\ \" and brackets"
    fi
    if ((!is_user)) && [[ -z $root && $checkout/ =~ ^(/tmp|/var/tmp|/dev|/run/user)/ ]]; then
        die "$EXIT_NOT_READY" "the system's services have a /tmp of their own and cannot see $checkout: move the checkout, to /opt for example"
    fi
    scripts/setup_env.sh --check || die "$EXIT_NOT_READY" "there is no .venv as this version needs it in $checkout: run scripts/setup_env.sh first, as the checkout's owner"
    if [[ " ${names[*]} " == *' flux-fleet '* ]]; then
        scripts/setup_env.sh --check --fleet || die "$EXIT_NOT_READY" "Ray is not installed: run scripts/setup_env.sh --fleet first, as the checkout's owner"
    fi
    local name file
    for name in "${names[@]}"; do
        for file in $(files_of "$name"); do
            [[ -e scripts/systemd/$file ]] || die "$EXIT_NOT_READY" "scripts/systemd/$file is missing: this checkout is not whole"
        done
    done
}

# The account that was chosen at an earlier install stays.
choose_account() {
    local unit found
    for unit in flux-api@ flux-page flux-cleanup flux-fleet; do
        [[ -z $account && -e $units/$unit.service ]] || continue
        found=$(sed -n 's/^User=//p' "$units/$unit.service")
        account=$found
    done
    account=${account:-$ACCOUNT}
    group=$account
    if [[ $account != "$ACCOUNT" ]]; then
        group=$(group_of "$account")
        [[ -n $group ]] || die "$EXIT_USAGE" "there is no account '$account'${root:+ in $root/etc/passwd}"
    fi
}

# The name of an account's group; nothing for one that is not there.
group_of() {
    if [[ -z $root ]]; then
        id -gn "$1" 2> /dev/null || true
    elif [[ -e $root/etc/passwd && -e $root/etc/group ]]; then
        awk -F: -v account="$1" 'NR == FNR { if ($1 == account) gid = $4; next } gid != "" && $3 == gid { print $1; exit }' \
            "$root/etc/passwd" "$root/etc/group"
    fi
}

# A checkout in somebody's home is often closed to others. `nobody` stands for an account that is not there yet.
require_readable() {
    local file real reader=$account
    if ! id -u "$account" > /dev/null 2>&1; then reader=nobody; fi
    if (($(id -u) != 0)); then return; fi # nobody else can be asked for
    for file in start.sh frontend/index.html .venv/bin/python .env; do
        if [[ $file == .env && ! -e .env ]]; then continue; fi
        if runuser -u "$reader" -- test -r "$checkout/$file"; then continue; fi
        real=$(readlink -f "$file")
        die "$EXIT_NOT_READY" "the account $account cannot read $checkout/$file${real:+ ($real)}: give it the right, have checkout and Python where all may read (/opt), or install with --account $(stat -c %U .)"
    done
}

# put <file of scripts/systemd> <where>: for this checkout, and only when something changed.
put() {
    local text
    text=$(for_this_checkout "scripts/systemd/$1")
    if [[ -f $2 && $(cat "$2") == "$text" ]]; then
        echo "unchanged  $2"
        return
    fi
    if ((is_dry)); then
        echo "would write $2"
        return
    fi
    mkdir -p "$(dirname "$2")"
    printf '%s\n' "$text" > "$2.new"
    chmod 644 "$2.new"
    mv -f "$2.new" "$2"
    echo "written    $2"
}

# The units are as a checkout in /opt/flux-api and the account flux-api want them.
for_this_checkout() {
    local marks='/^#\[system$/d; /^#\]$/d' own='/^#\[own$/d; /^#own\]$/d; /^#: /d'
    if ((is_user)); then marks='/^#\[system$/,/^#\]$/d'; fi
    if ! is_own_account; then own='/^#\[own$/,/^#own\]$/d; s/^#: //'; fi
    sed -e "$own" -e "$marks" \
        -e "s#^User=flux-api\$#User=${account-}#; s#^WantedBy=multi-user.target\$#WantedBy=$target#" \
        -e "/^d /s# root flux-api -\$# root ${group-} -#; /^d /s# flux-api flux-api -\$# ${account-} ${group-} -#" \
        -e "s#/etc/flux-api#$settings#g; s#/opt/flux-api#$checkout#g" "$1"
}

# The account that is made here has folders of its own; any other goes on with those of the checkout.
is_own_account() {
    ((is_user)) || [[ $account == "$ACCOUNT" ]]
}

# An empty file of settings, for its owner to write into. One that is there is left as it is.
put_settings() {
    local file=$root$settings/$1.env
    if [[ -e $file ]]; then
        echo "unchanged  $file"
        return
    fi
    if ((is_dry)); then
        echo "would write $file"
        return
    fi
    mkdir -p "$root$settings"
    # Keys may stand there: systemd reads it as root, and hands on what is in it.
    (umask 077 && printf '# Settings, a line each: NAME=value. %s/.env.example lists them.\n' "$checkout" > "$file")
    echo "written    $file"
}

take() {
    [[ -e $1 ]] || return 0
    if ((is_dry)); then
        echo "would remove $1"
    else
        rm -f "$1"
        echo "removed    $1"
    fi
}

reload() {
    [[ -n $root ]] || run "${ctl[@]}" daemon-reload
}

run() {
    if ((is_dry)); then
        echo "would run  $*"
    else
        "$@"
    fi
}

wrong() {
    echo "manage_services.sh: $1; --help says what is accepted" >&2
    exit "$EXIT_USAGE"
}

die() {
    local status=$1
    shift
    echo "manage_services.sh: $*" >&2
    exit "$status"
}

main "$@"
