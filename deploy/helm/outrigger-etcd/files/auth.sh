# Makes the etcd ask who its clients are: a user whose role ends at the prefix, then authentication
# on. Every step may be repeated. The common name of a client's certificate is its user.
#
#   MEMBERS  client URLs, with commas between     PREFIX  what the role may read and write
#   USER_NAME  the user and its role              TRIES   how often to ask for a healthy etcd
#   ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY     the certificate of root
set -eu

ctl() { etcdctl --endpoints="$MEMBERS" --command-timeout=10s "$@"; }

tries=0
until ctl endpoint health; do
    tries=$((tries + 1))
    [ "$tries" -lt "${TRIES:-60}" ] || { echo "the etcd is not healthy"; exit 1; }
    "$BUSYBOX" sleep 5
done

# Adding fails where it is there already: look first.
has() { ctl "$1" list | "$BUSYBOX" grep -qx "$2"; }
has_role() { ctl user get "$1" | "$BUSYBOX" grep '^Roles:' | "$BUSYBOX" tr ' ' '\n' | "$BUSYBOX" grep -qx "$2"; }

has role root || ctl role add root
has user root || ctl user add root --no-password
has_role root root || ctl user grant-role root root

has role "$USER_NAME" || ctl role add "$USER_NAME"
has user "$USER_NAME" || ctl user add "$USER_NAME" --no-password
has_role "$USER_NAME" "$USER_NAME" || ctl user grant-role "$USER_NAME" "$USER_NAME"
ctl role grant-permission "$USER_NAME" --prefix=true readwrite "$PREFIX"

ctl auth enable
ctl auth status
