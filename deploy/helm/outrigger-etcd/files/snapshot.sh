# Writes a snapshot of one member to a volume and keeps the newest ones.
#
#   MEMBERS  client URLs, with commas between     KEEP  how many stay
#   FOLDER   where they are (/snapshots)          ETCDCTL_…  the certificate of root
set -eu

folder=${FOLDER:-/snapshots}
# What a killed run left behind.
"$BUSYBOX" rm -f "$folder"/*.part

name=$folder/etcd-$("$BUSYBOX" date -u +%Y%m%dT%H%M%SZ).db
for url in $(echo "$MEMBERS" | "$BUSYBOX" tr ',' ' '); do
    # A member that does not answer would be waited for.
    etcdctl --command-timeout=10s --endpoints="$url" endpoint health || continue
    if etcdctl --command-timeout=600s --endpoints="$url" snapshot save "$name.part"; then
        "$BUSYBOX" mv "$name.part" "$name"
        break
    fi
    "$BUSYBOX" rm -f "$name.part"
done
[ -f "$name" ] || { echo "no member gave a snapshot"; exit 1; }

# Names rise with time.
"$BUSYBOX" ls "$folder" | "$BUSYBOX" grep '^etcd-.*\.db$' | "$BUSYBOX" sort -r |
    "$BUSYBOX" tail -n "+$((KEEP + 1))" | while read -r old; do
    echo "removing $old"
    "$BUSYBOX" rm -f "$folder/$old"
done
"$BUSYBOX" ls -l "$folder"
