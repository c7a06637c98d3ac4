-- SPDX-License-Identifier: Apache-2.0
-- wrk posts one-alert groups; each alert is new, so that each has to be stored.
local counter = 0
local thread_number = 0

function setup(thread)
    thread:set("number", thread_number)
    thread_number = thread_number + 1
end

-- All but the fingerprint is made once, so that the load takes as little of the machine as it can.
function init(arguments)
    local token, seed, instance = arguments[1], arguments[2], arguments[3]
    local mark = string.format("%s-%d-%08d", seed, number, 0)
    local body = '{"receiver":"zamu","status":"firing","alerts":[{"status":"firing","labels":'
        .. '{"alertname":"HostHighCpuLoad","instance":"' .. instance .. '","job":"node","severity":"warning"},'
        .. '"annotations":{"description":"CPU load is above 80%","summary":"Host high CPU load"},'
        .. '"startsAt":"2026-11-22T20:35:18.019313Z","endsAt":"0001-01-01T00:00:00Z",'
        .. '"generatorURL":"http://prometheus.example.net:9090/graph","fingerprint":"' .. mark .. '"}],'
        .. '"groupLabels":{"alertname":"HostHighCpuLoad"},"commonLabels":{},"commonAnnotations":{},'
        .. '"externalURL":"http://alertmanager.example.net:9093","version":"4","groupKey":"{}:{}","truncatedAlerts":0}'
    local whole = wrk.format("POST", nil, {
        ["Content-Type"] = "application/json",
        ["Authorization"] = "Bearer " .. token,
    }, body)
    local first, last = string.find(whole, mark, 1, true)
    before = string.sub(whole, 1, last - 8)
    after = string.sub(whole, last + 1)
end

function request()
    counter = counter + 1
    return before .. string.format("%08d", counter) .. after
end
