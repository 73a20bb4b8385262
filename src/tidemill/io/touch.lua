#!lua
-- Show watermark and lag of partitions without a batch. ARGV: incarnation, token, then (partition, watermark, lagging).
local prefix = KEYS[1]
-- guard: incarnation
local incarnation = redis.call('GET', prefix .. 'incarnation') or ''
if incarnation ~= ARGV[1] then
  return {'fenced', 'incarnation', '', ARGV[1], incarnation}
end
-- end guard
-- guard: owner
for at = 3, #ARGV, 3 do
  local owner = redis.call('HGET', prefix .. 'p:' .. ARGV[at], 'owner') or ''
  if owner ~= ARGV[2] then
    return {'fenced', 'owner', ARGV[at], ARGV[2], owner}
  end
end
-- end guard
for at = 3, #ARGV, 3 do
  local record = prefix .. 'p:' .. ARGV[at]
  redis.call('HSET', record, 'lagging', ARGV[at + 2])
  if tonumber(ARGV[at + 1]) > tonumber(redis.call('HGET', record, 'watermark') or '-1') then
    redis.call('HSET', record, 'watermark', ARGV[at + 1])
  end
end
return {'applied'}
