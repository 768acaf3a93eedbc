# Defragments the members one at a time, the leader last: a member does not answer while it does so.
# It stops at the first member that is not healthy.
#
#   MEMBERS  client URLs, with commas between     FREE_PERCENT  a member with less free is left alone
#   ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY     the certificate of root
set -eu

ctl() { etcdctl --command-timeout=10s "$@"; }
healthy() { ctl --endpoints="$MEMBERS" endpoint health; }
field() { "$BUSYBOX" sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }

healthy || { echo "not every member is healthy, nothing is defragmented"; exit 1; }

leader=
others=
for url in $(echo "$MEMBERS" | "$BUSYBOX" tr ',' ' '); do
    status=$(ctl --endpoints="$url" endpoint status --write-out=json)
    if [ "$(echo "$status" | field member_id)" = "$(echo "$status" | field leader)" ]; then
        leader=$url
    else
        others="$others $url"
    fi
done

for url in $others $leader; do
    status=$(ctl --endpoints="$url" endpoint status --write-out=json)
    size=$(echo "$status" | field dbSize)
    used=$(echo "$status" | field dbSizeInUse)
    free=$(( (size - used) * 100 / size ))
    if [ "$free" -lt "$FREE_PERCENT" ]; then
        echo "$url: $free % of $size bytes are free, left alone"
        continue
    fi
    echo "$url: $free % of $size bytes are free, defragmenting"
    etcdctl --command-timeout=600s --endpoints="$url" defrag
    tries=0
    until healthy; do
        tries=$((tries + 1))
        [ "$tries" -lt 24 ] || { echo "$url does not come back, the others are left alone"; exit 1; }
        "$BUSYBOX" sleep 5
    done
done
