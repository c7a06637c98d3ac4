-- SPDX-License-Identifier: Apache-2.0
-- wrk posts one-alert groups; each alert is new, so that each has to be stored.
local counter = 0
local thread_number = 0

function setup(thread)
    thread:set("number", thread_number)
    thread_number = thread_number + 1
end

function init(arguments)
    token = arguments[1]
    seed = arguments[2]
    instance = arguments[3]
end

function request()
    counter = counter + 1
    local fingerprint = string.format("%s-%d-%d", seed, number, counter)
    local body = '{"receiver":"zamu","status":"firing","alerts":[{"status":"firing","labels":'
        .. '{"alertname":"HostHighCpuLoad","instance":"' .. instance .. '","job":"node","severity":"warning"},'
        .. '"annotations":{"description":"CPU load is above 80%","summary":"Host high CPU load"},'
        .. '"startsAt":"2026-11-22T20:35:18.019313Z","endsAt":"0001-01-01T00:00:00Z",'
        .. '"generatorURL":"http://prometheus.example.net:9090/graph","fingerprint":"' .. fingerprint .. '"}],'
        .. '"groupLabels":{"alertname":"HostHighCpuLoad"},"commonLabels":{},"commonAnnotations":{},'
        .. '"externalURL":"http://alertmanager.example.net:9093","version":"4","groupKey":"{}:{}","truncatedAlerts":0}'
    return wrk.format("POST", nil, {
        ["Content-Type"] = "application/json",
        ["Authorization"] = "Bearer " .. token,
    }, body)
end
