#!lua flags=allow-oom
-- These offsets are in Kafka: slices up to them are dropped. Runs on a full server too: it is what frees memory there.
-- ARGV: token, then (partition, offset next) and again. Partitions of other owners are skipped.
for at = 2, #ARGV, 2 do
  local record, outbox = KEYS[1] .. 'p:' .. ARGV[at], KEYS[1] .. 'o:' .. ARGV[at]
  -- guard: owner
  if redis.call('HGET', record, 'owner') ~= ARGV[1] then
    outbox = nil
  end
  -- end guard
  if outbox then
    local published = tonumber(ARGV[at + 1])
    for _, field in ipairs(redis.call('HKEYS', outbox)) do
      if tonumber(string.match(field, '^%d+')) <= published then
        redis.call('HDEL', outbox, field)
      end
    end
    if published > tonumber(redis.call('HGET', record, 'committed') or '-1') then
      redis.call('HSET', record, 'committed', ARGV[at + 1])
    end
  end
end
return {'applied'}
