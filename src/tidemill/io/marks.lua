#!lua flags=no-writes
-- The marks of every partition of the app: name, owner, applied, committed, watermark, lagging, and again.
local marks = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1] .. 'partitions')) do
  local record = redis.call('HMGET', KEYS[1] .. 'p:' .. name, 'owner', 'applied', 'committed', 'watermark', 'lagging')
  local last = #marks
  marks[last + 1] = name
  marks[last + 2] = record[1] or ''
  marks[last + 3] = record[2] or '-1'
  marks[last + 4] = record[3] or '-1'
  marks[last + 5] = record[4] or '-1'
  marks[last + 6] = record[5] or '0'
end
return marks
