-- Compare-and-append: the only way anything gets into a generation's log.
--
-- KEYS[1]  the stream
-- KEYS[2]  where the request is kept; given when it, or the ttl, is to be set
-- KEYS[3]  the note that the claim under which a log is created is over; given where there is one
-- ARGV[1]  the id the log must end with; '' when there must be no log
-- ARGV[2]  ttl in ms to set, 0 to leave it as it is
-- ARGV[3]  the sharded pub/sub channel
-- ARGV[4]  the request to keep, with a ttl; '' where there is none to keep or it is kept already
-- ARGV[5…] id, entry, id, entry, …; none of them only compares
--
-- Returns 1 when the entries stand at the end of the log: appended now, or before, when the answer got
-- lost on the way. Otherwise nothing was done, and the log's last id and entry are returned; nothing
-- (an empty list) when there is no log, and there is to be none.

-- Every entry is compared: somebody else's event may have the same id, and a batch of somebody else's the same end.
local function stands()
  local there = redis.call('XRANGE', KEYS[1], ARGV[5], '+')
  for i = 5, #ARGV, 2 do
    local entry = there[(i - 3) / 2]
    if not entry or entry[1] ~= ARGV[i] or entry[2][2] ~= ARGV[i + 1] then
      return false
    end
  end
  return true
end

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '') ~= ARGV[1] then
  if last and #ARGV > 4 and last[1] == ARGV[#ARGV - 1] and stands() then
    return 1
  end
  return last and {last[1], last[2][2]} or {}
end
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1 then
  return {}
end
for i = 5, #ARGV, 2 do
  redis.call('XADD', KEYS[1], ARGV[i], 'e', ARGV[i + 1])
end
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[4])
end
if ARGV[2] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
if #ARGV > 4 then
  -- An entry holds no NUL: it is JSON, or the inside of a JSON string.
  redis.call('SPUBLISH', ARGV[3], table.concat(ARGV, '\0', 5))
end
return 1
