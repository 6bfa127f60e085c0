#!/bin/sh
# Usage: run.sh <library> <url>
set -eu
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$1/target/classes:$(cat "$1/target/classpath")" Client "$2"
